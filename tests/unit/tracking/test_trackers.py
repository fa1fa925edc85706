"""Trackers: what a run leaves of its metrics, and that none of them can end it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mtl.config import Config
from mtl.config_tracking import Tracking
from mtl.errors import ConfigError
from mtl.tracking import Trackers, open_trackers, scalars
from tests.helpers.jobs import tiny_config
from tests.helpers.memory_store import MemoryStore
from tests.helpers.trackers import Recorder, read_events

PAGE = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()
PROGRESS: dict[str, Any] = {"step": 7, "steps": 9, "epoch": 0.5, "loss": {"a": 1.5, "b": 2}, "ceiling": {}}
EVALUATION: dict[str, Any] = {
    **{"kind": "evaluation", "split": "val", "epoch": 1, "rows": 9, "quarantined": 1},
    "metrics": {"a": {"accuracy": 0.25}},
}


def config(**tracking: Any) -> Config:
    return tiny_config("data", "runs", tracking=Tracking(**tracking))


def opened(store: MemoryStore, said: list[str], attempt: int = 1, step: int = 0, **tracking: Any) -> Trackers:
    return open_trackers(config(**tracking), store, attempt, step, said.append)


def curves(store: MemoryStore) -> dict[str, dict[int, float]]:
    """What TensorBoard shows: files in the order of their names, a restart forgetting what it repeats."""
    found: dict[str, dict[int, float]] = {}
    for key in sorted(store.list("tensorboard/")):
        first, *rest = read_events(store.get(key))
        assert first.file_version
        for event in rest:
            if event.HasField("session_log"):
                found = {name: {at: v for at, v in of.items() if at < event.step} for name, of in found.items()}
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


OWN = "tests.helpers.trackers:Recorder"


def test_rows_become_names_and_numbers() -> None:
    assert scalars(PROGRESS) == {"epoch": 0.5, "loss/a": 1.5, "loss/b": 2.0}
    assert scalars(EVALUATION) == {"val/a/accuracy": 0.25, "val/quarantined": 1.0}


def test_each_flush_leaves_a_part_of_both_kinds() -> None:
    store, said = MemoryStore(), list[str]()
    trackers = opened(store, said)
    trackers.log(PROGRESS)
    trackers.flush()
    trackers.flush()  # nothing new, no part
    trackers.log(EVALUATION)
    trackers.close()
    assert sorted(store.list("metrics/")) == ["metrics/a1-000001.jsonl", "metrics/a1-000002.jsonl"]
    assert [json.loads(store.get(key)) for key in sorted(store.list("metrics/"))] == [PROGRESS, EVALUATION]
    assert curves(store)["loss/a"] == {7: 1.5}
    assert curves(store)["val/a/accuracy"] == {7: 0.25}  # an evaluation belongs to the last step
    assert not said


def test_a_resumed_run_continues_the_curves() -> None:
    store, said = MemoryStore(), list[str]()
    first = opened(store, said)
    for step in range(1, 7):
        first.log({"step": step, "loss": {"a": float(step)}})
    first.flush()  # steps 5 and 6 were written, and the commit after step 4 is the last one that counts
    second = opened(store, said, attempt=2, step=4)
    for step in range(5, 9):
        second.log({"step": step, "loss": {"a": 10.0 * step}})
    second.flush()
    assert curves(store)["loss/a"] == {1: 1, 2: 2, 3: 3, 4: 4, 5: 50, 6: 60, 7: 70, 8: 80}
    third = opened(store, said, attempt=3, step=6)
    third.log({"step": 7, "loss": {"a": -1.0}})
    third.close()
    assert curves(store)["loss/a"] == {1: 1, 2: 2, 3: 3, 4: 4, 5: 50, 6: 60, 7: -1}


def test_where_storage_fails_metrics_wait() -> None:
    store, said = MemoryStore(), list[str]()
    trackers = opened(store, said, tensorboard=False)
    trackers.log(PROGRESS)
    store.fail(0)
    trackers.flush()
    assert not [*store.list("metrics/")]
    trackers.log(EVALUATION)
    trackers.flush()
    (key,) = store.list("metrics/")
    assert [json.loads(line) for line in store.get(key).splitlines()] == [PROGRESS, EVALUATION]
    assert not said


@pytest.mark.parametrize("fails", ["init", "log", "flush", "close"])
def test_a_tracker_that_fails_is_said_once_and_dropped(fails: str) -> None:
    store, said = MemoryStore(), list[str]()
    trackers = opened(store, said, own=OWN, arguments={"fails": fails})
    for _ in range(2):
        trackers.log(PROGRESS)
        trackers.flush()
    trackers.close()
    (sentence,) = said
    assert "training goes on" in sentence
    assert "OSError: the server is away" in sentence
    assert OWN in sentence
    assert [call for call in Recorder.made[-1].calls if call.startswith(fails)] == [Recorder.made[-1].calls[-1]]
    assert len([*store.list("metrics/")]) == 2  # the others got everything


def test_a_tracker_knows_the_run() -> None:
    opened(MemoryStore(), [], attempt=3, step=40, own=OWN)
    run = Recorder.made[-1].run
    assert (run.attempt, run.step, run.config.name) == (3, 40, "tiny")


def test_tensorboard_can_be_left_out() -> None:
    store = MemoryStore()
    trackers = opened(store, [], tensorboard=False)
    trackers.log(PROGRESS)
    trackers.close()
    assert not [*store.list("tensorboard/")]


def test_a_tracker_that_does_not_exist_is_an_error_at_the_start() -> None:
    with pytest.raises(ConfigError, match=r"nowhere:Class' can not be imported"):
        opened(MemoryStore(), [], own="nowhere:Class")
    with pytest.raises(ConfigError, match="tracking"):
        config(own="no address")
    with pytest.raises(ConfigError, match=r"tracking\.arguments"):
        config(arguments={"fails": "log"})


def test_the_tracker_of_the_docs_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "lines.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    said = list[str]()
    trackers = opened(MemoryStore(), said, own="lines:Lines", arguments={"path": str(tmp_path / "out.txt")})
    trackers.log(PROGRESS)
    trackers.close()
    assert (tmp_path / "out.txt").read_text().splitlines() == [
        *("run tiny, attempt 1, from step 0", "7 epoch 0.5", "7 loss/a 1.5", "7 loss/b 2")
    ]
    assert not said
