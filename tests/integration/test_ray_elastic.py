"""A run that goes on with the workers there are, and takes in those that come back. Real nodes of Ray."""

import io
import json
import signal
from collections.abc import Generator
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import pytest

from mtl.config import Model, Resources
from mtl.console import RunConsole
from tests.helpers.datasets import tiny
from tests.helpers.jobs import ended_well, tiny_config, undisturbed
from tests.helpers.nodes import Extra, extra_node, forget_claims

# Ray's own warnings are not ours to mend.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]


@pytest.fixture
def nodes(ray_cluster: str, tmp_path: Path) -> Generator[Any]:
    """Adds a node with room for one worker; the head has room for one more."""
    with ExitStack() as stack:
        numbers = iter(range(10))

        def add() -> Extra:
            return stack.enter_context(extra_node(ray_cluster, tmp_path / f"node-{next(numbers)}.log", cpus=3))

        yield add


def test_a_lost_node_is_done_without_and_a_new_one_is_taken_in(
    nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mtl.on_ray.cluster import ELASTIC
    from mtl.on_ray.train import train

    for name, value in ELASTIC.items():
        monkeypatch.setenv(name, value)
    tiny(tmp_path / "data")
    release = tmp_path / "release"
    model = Model(backbone="tests.helpers.backbones_at_fault:slow_until", backbone_args={"file": str(release)})
    config = tiny_config(
        tmp_path / "data",
        tmp_path / "runs",
        epochs=100,
        max_micro_batch=16,
        model=model,
        resources=Resources(workers=2, min_workers=1, cpus_per_worker=3, resize_s=1),
    )
    said, node = io.StringIO(), nodes()
    # A run before may have left one: where a machine is slow, Ray gives up withdrawing it, and it lasts 180 s.
    forget_claims()
    console = RunConsole(said)

    class Listening:
        """A console; the node dies at the first progress, and another comes once one worker has gone on alone."""

        line = console.line
        workers: list[str] = []  # noqa: RUF012 - of this test alone

        def __call__(self, event: dict[str, Any]) -> None:
            console(event)
            if event["kind"] == "note" and event["text"].startswith("attempt "):
                if (now := event["text"].rpartition(", ")[2]) != (self.workers or [""])[-1]:
                    self.workers.append(now)
                if len(self.workers) == 3:
                    release.touch()
            elif event["kind"] == "progress" and len(self.workers) == 1 and not killed:
                killed.append(kill(node))
            elif event["kind"] == "progress" and len(self.workers) == 2 and len(killed) == 1:
                killed.append(nodes())

    killed: list[object] = []
    listening = Listening()
    result = train(config, cast("RunConsole", listening))
    log = said.getvalue()
    assert result["status"] == "finished", log
    assert listening.workers == ["2 workers", "1 worker", "2 workers"], log
    # On a busy machine Ray may see that the node has gone only after the restart, and end the workers once more.
    causes = [one["cause"] for one in result["restarts"]]
    assert [cause for cause, _ in groupby(causes)] == ["failed", "resized"], log
    ended_well(config, attempts=1 + len(causes))
    files = [tmp_path / "runs/tiny/attempts" / f"{n + 1}.json" for n in range(1 + len(causes))]
    attempts = [json.loads(file.read_text())["workers"] for file in files]
    assert [workers for workers, _ in groupby(attempts)] == [2, 1, 2]
    expected = undisturbed(config)
    assert result["ledger"] == expected["ledger"]
    for task, metrics in expected["metrics"]["test"].items():
        assert result["metrics"]["test"][task] == pytest.approx(metrics, rel=1e-2), task


def kill(node: Extra) -> int:
    """The machine is gone: its raylet and what it started, without a word."""
    import os

    children = Path(f"/proc/{node.process.pid}/task/{node.process.pid}/children").read_text().split()
    for pid in (*map(int, children), node.process.pid):
        os.kill(pid, signal.SIGKILL)
    return node.process.pid
