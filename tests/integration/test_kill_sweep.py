"""SIGKILL at random moments of writing checkpoints: what is committed loads, and at most one interval is lost.

Every other time a janitor cleans up before the next writer comes.
"""

import os
import random
import signal
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from mtl import janitor
from mtl.checkpoint import load
from mtl.record import read
from mtl.store import Store, open_store
from tests.helpers.moto_server import simulated_s3
from tests.helpers.ranks import CONTEXT
from tests.helpers.tensors import assert_same
from tests.helpers.writers import commit_for_ever, state

AT_ONCE_S = -61.0
"""An age that every claim has, renewed just now or not: it is said to expire in 60 s."""


@pytest.mark.parametrize("kills", [14, pytest.param(200, marks=pytest.mark.slow)])
def test_local_storage(kills: int, tmp_path: Path) -> None:
    sweep(str(tmp_path / "run"), {}, kills, most_s=0.1)


@pytest.fixture(scope="module")
def simulated() -> Iterator[Mapping[str, str]]:
    with simulated_s3("sweep") as variables:
        yield variables


def test_simulated_s3(simulated: Mapping[str, str]) -> None:
    sweep(f"s3://sweep/{uuid.uuid4().hex}", simulated, 6, most_s=0.3)


@pytest.mark.s3
@pytest.mark.slow
def test_real_s3(s3: str) -> None:
    variables = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    sweep(f"{s3}/run", variables, 40, most_s=0.3)


def test_a_janitor_disturbs_no_writer(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "run"))
    mine, its = CONTEXT.Pipe(duplex=False)
    writer = CONTEXT.Process(target=commit_for_ever, args=(store.uri, {}, its), daemon=True)
    writer.start()
    its.close()
    mine.recv()
    for _ in range(20):
        janitor.delete(store, 3600.0, pytest.fail)
        mine.recv()  # a commit
    writer.kill()
    writer.join()
    mine.close()
    assert all_loads(store, 1) >= 20


def sweep(uri: str, variables: Mapping[str, str], kills: int, most_s: float) -> None:
    """Kill that many writers of one run, each up to `most_s` after it has begun to write."""
    store, draw, safe, caught = open_store(uri), random.Random(0), 0, 0
    for number in range(1, kills + 1):
        mine, its = CONTEXT.Pipe(duplex=False)
        writer = CONTEXT.Process(target=commit_for_ever, args=(uri, dict(variables), its), daemon=True)
        writer.start()
        its.close()
        began = mine.recv()
        assert began >= safe, "a committed step was lost"
        time.sleep(draw.uniform(0, most_s))
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        told = began
        try:
            while True:
                told = mine.recv()
        except EOFError:
            mine.close()
        safe = all_loads(store, number)
        assert told <= safe <= told + 1, "the newest commit is the last one announced, or the one after it"
        caught += len(unnamed(store)) > 0
        if number % 2:
            janitor.delete(store, AT_ONCE_S, pytest.fail)
            assert not unnamed(store)
            assert not store.unfinished()
            assert all_loads(store, number) == safe
    assert caught > kills / 10, "hardly a kill hit an upload"


def all_loads(store: Store, attempt: int) -> int:
    """The newest committed step (0: none), after every commit that run.json names was loaded and compared."""
    record = read(store)
    assert record is not None
    assert record.attempt == attempt
    for commit in record.checkpoints:
        found = load(store, commit.path, commit.manifest_sha256)
        for name, tensors in state(commit.step).items():
            assert_same(found.files[name], tensors)
        assert found.state == {"step": commit.step}
    return record.checkpoints[0].step if record.checkpoints else 0


def unnamed(store: Store) -> set[str]:
    """Folders of checkpoints that no commit names: what a kill left unfinished."""
    record = read(store)
    assert record is not None
    there = {key.rpartition("/")[0] for key in store.list("checkpoints/")}
    return there - {commit.path for commit in record.checkpoints}
