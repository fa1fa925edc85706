"""Many processes start a run of one name at the same moment: exactly one writes, the others say who it is."""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from mtl.owner import Owner, utc
from mtl.record import RUN, Record, read
from mtl.store import Store, open_store
from tests.helpers.moto_server import simulated_s3
from tests.helpers.ranks import CONTEXT
from tests.helpers.writers import contend

CONTENDERS = 3


def test_local_storage(tmp_path: Path) -> None:
    race(str(tmp_path), {}, 100)


@pytest.fixture(scope="module")
def simulated() -> Iterator[Mapping[str, str]]:
    with simulated_s3("races") as variables:
        yield variables


def test_simulated_s3(simulated: Mapping[str, str]) -> None:
    race(f"s3://races/{uuid.uuid4().hex}", simulated, 10)


@pytest.mark.s3
@pytest.mark.slow
def test_real_s3(s3: str) -> None:
    race(f"{s3}/runs", {name: value for name, value in os.environ.items() if name.startswith("AWS_")}, 100)


def race(uri: str, variables: Mapping[str, str], races: int) -> None:
    """Let processes compete for so many names, of which every other one was left by a killed owner."""
    store, names = open_store(uri), [f"run-{number}" for number in range(races)]
    for name in names[1::2]:
        leave(store.child(name), name)
    barrier = CONTEXT.Barrier(CONTENDERS)
    pipes = [CONTEXT.Pipe(duplex=False) for _ in range(CONTENDERS)]
    processes = [
        CONTEXT.Process(target=contend, args=(uri, dict(variables), names, barrier, its), daemon=True)
        for _, its in pipes
    ]
    for process, (_, its) in zip(processes, pipes, strict=True):
        process.start()
        its.close()
    winners: set[int | None] = set()
    for number, name in enumerate(names):
        outcomes = [mine.recv() for mine, _ in pipes]
        won = [process.pid for process, (first, _) in zip(processes, outcomes, strict=True) if first]
        assert len(won) == 1, f"{name}: {outcomes}"
        assert all(f"process {won[0]}" in owner for _, owner in outcomes), outcomes
        winners |= {*won}
        record = read(store.child(name))
        assert record is not None
        assert record.attempt == (6 if number % 2 else 1)
        assert [commit.step for commit in record.checkpoints] == [1]
    for process, (mine, _) in zip(processes, pipes, strict=True):
        process.join(60)
        assert process.exitcode == 0
        mine.close()
    for name in names:
        record = read(store.child(name))
        assert record is not None
        assert (record.status, record.owner) == ("finished", None)
    assert races < 50 or len(winners) > 1, "one process won all races: they were none"


def leave(store: Store, name: str) -> None:
    """A run in its fifth attempt whose owner, a process of this machine, has died."""
    script = "from mtl.owner import Owner; print(Owner.here().model_dump_json())"
    global _DEAD
    if _DEAD is None:
        said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
        _DEAD = Owner.model_validate_json(said)
    record = Record(name=name, status="running", attempt=5, owner=_DEAD, expires=utc())
    store.put_if(RUN, record.model_dump_json().encode(), version=None)


_DEAD: Owner | None = None
