"""`--profile`: the time of real steps by part, a trace that can be opened, and words."""

import gzip
import json
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.autograd import DeviceType

from mtl import profiling
from mtl.balancing_config import Balancing
from mtl.job import Job
from mtl.profiling import exposed, length, spans, without
from mtl.store import Store, open_store
from mtl.verdicts import Breakdown
from tests.helpers.datasets import tiny
from tests.helpers.engine import SMALL, result_of, tiny_config
from tests.helpers.ranks import Group, values
from tests.helpers.tracked import notes_of


@dataclass
class Event:
    """One of the profiler's."""

    name: str
    start: float
    end: float
    device_type: DeviceType = DeviceType.CPU
    is_user_annotation: bool = False
    time_range: Any = field(init=False)

    def __post_init__(self) -> None:
        self.time_range = SimpleNamespace(start=self.start, end=self.end)


def test_spans_are_where_anything_ran() -> None:
    made = spans([Event("a", 5, 7), Event("b", 0, 2), Event("c", 1, 3), Event("d", 0.5, 1)])
    assert made.tolist() == [[0, 3], [5, 7]]
    assert without(made, spans([Event("e", 2, 6)])).tolist() == [[0, 2], [6, 7]]
    assert without(made, spans([])).tolist() == made.tolist()
    assert length(np.empty((0, 2))) == 0


def test_a_collective_counts_where_nothing_else_runs() -> None:
    s = 1e6
    events = [
        Event("mtl: backward", 0, 10 * s),
        Event("aten::convolution_backward", 0, 6 * s),
        Event("gloo:all_reduce", 4 * s, 9 * s),  # two seconds of it behind the convolution
        Event("c10d::allreduce_", 4 * s, 4.1 * s),
        Event("mtl: balancing", 9 * s, 10 * s),
        Event("gloo:all_reduce", 9 * s, 9.5 * s),
        Event("gloo:all_reduce", 11 * s, 11.5 * s),  # between the steps' parts
    ]
    found = exposed(events, {"backward": 9.0, "balancing": 1.0}, 12.0)
    assert found == pytest.approx({"backward": 6.0, "balancing": 0.5, "collective": 4.0, "other": 1.5})
    assert sum(found.values()) == pytest.approx(12.0)


def test_on_a_gpu_kernels_decide() -> None:
    s, gpu = 1e6, DeviceType.CUDA
    events = [
        Event("mtl: backward", 0, 4 * s),
        Event("aten::mm", 0, 0.1 * s),
        Event("mtl: backward", 0, 4 * s, gpu, is_user_annotation=True),
        Event("sgemm", 0, 3 * s, gpu),
        Event("ncclDevKernel_AllReduce", 2 * s, 4 * s, gpu),
    ]
    assert exposed(events, {"backward": 4.0}, 4.0) == pytest.approx({"backward": 3, "collective": 1, "other": 0})


def test_words_say_the_largest_part_and_what_to_change() -> None:
    seconds = {"loader": 0.6, "forward": 0.2, "backward": 0.15, "optimizer": 0.0, "collective": 0.0, "other": 0.05}
    lines = list(Breakdown(10, 10, 1.0, seconds, [("aten::mm", 0.5)], gpu=False).lines())
    assert lines[0] == "profile: 10 steps of 100.0 ms each, after 10 of warm-up"
    assert lines[1].split()[:4] == ["loader", "60.0%", "60.00", "ms"]
    assert lines[-1].startswith("  to change: loader: ")
    busy = Breakdown(10, 10, 1.0, {"forward": 0.3, "backward": 0.65, "other": 0.05}, [], gpu=True)
    (advice,) = busy.advice()
    assert advice.startswith("forward and backward are 95%: lower precision")


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., tuple[Any, list[str]]]:
    tiny(tmp_path / "data")

    def made(name: str, **changes: Any) -> tuple[Any, list[str]]:
        config = tiny_config(tmp_path / "data", tmp_path / "runs", name, model=SMALL, **changes)
        notes = notes_of(config)
        torch.use_deterministic_algorithms(False)
        return config, notes

    return made


PARTS = {"loader", "forward", "backward", "optimizer", "balancing", "collective", "other"}


def table_of(notes: list[str]) -> dict[str, float]:
    """Percentages by part, of the one table that was said."""
    (first,) = (at for at, note in enumerate(notes) if note.startswith("profile: 10 steps of "))
    table = [note.split() for note in notes[first + 1 : first + 8]]
    shares = {row[0]: float(row[1].removesuffix("%")) for row in table}
    assert shares.keys() == PARTS
    assert sum(shares.values()) == pytest.approx(100, abs=0.5)
    return shares


def marked(store: Store, key: str) -> Counter[str]:
    """How often each part is marked in the trace `key`."""
    trace = json.loads(gzip.decompress(store.get(key)))
    return Counter(event.get("name") for event in trace["traceEvents"] if event.get("cat") == "user_annotation")


def test_a_real_run_is_profiled_and_trains_as_without(run: Callable[..., tuple[Any, list[str]]]) -> None:
    balancing = Balancing(method="upgrad")
    config, notes = run("watched", epochs=7, profile=True, balancing=balancing)
    shares = table_of(notes)
    assert shares["forward"] > 0
    assert shares["backward"] > 0
    assert shares["optimizer"] > 0
    assert shares["balancing"] > 0
    assert shares["collective"] == 0  # there is one worker

    store = open_store(config.storage).child(config.name)
    (key,) = store.list("profile/")
    assert key == "profile/a1-000020.json.gz"
    names = marked(store, key)
    assert names["mtl: forward"] == names["mtl: backward"] == names["mtl: optimizer"] == 10

    other, notes = run("unwatched", epochs=7, balancing=balancing)
    assert not any("profile" in note for note in notes)
    assert result_of(other)["metrics"] == result_of(config)["metrics"]


def test_training_goes_on_while_the_report_is_made(
    run: Callable[..., tuple[Any, list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    later, waited, record = threading.Event(), list[bool](), Job._record  # pyright: ignore[reportPrivateUsage]

    def slowly(*args: Any) -> dict[str, float]:
        waited.append(later.wait(30))
        return exposed(*args)

    def watched(self: Job, row: dict[str, Any], *args: Any) -> None:
        record(self, row, *args)
        if row["step"] == 23:
            later.set()

    monkeypatch.setattr(profiling, "exposed", slowly)
    monkeypatch.setattr(Job, "_record", watched)
    _, notes = run("patient", epochs=8, profile=True)
    assert waited == [True]
    assert table_of(notes)


def test_of_two_ranks_the_first_is_watched_and_both_train_as_without(tmp_path: Path) -> None:
    tiny(tmp_path / "data")
    watched, plain = (
        tiny_config(tmp_path / "data", tmp_path / "runs", name, model=SMALL, epochs=7, profile=name == "watched")
        for name in ("watched", "plain")
    )
    first, second = values(Group(tmp_path / "watched", 2, notes_of, watched).wait())
    shares = table_of(first)
    assert shares["collective"] > 0
    assert not any("profile" in note for note in second)

    store = open_store(watched.storage).child(watched.name)
    (key,) = store.list("profile/")
    assert any(note.startswith(f"the trace is {key} of the run") for note in first)
    names = marked(store, key)
    assert names["mtl: forward"] == names["mtl: backward"] == names["mtl: optimizer"] == 10

    values(Group(tmp_path / "plain", 2, notes_of, plain).wait())
    assert result_of(watched)["metrics"] == result_of(plain)["metrics"]
    assert result_of(watched)["ledger"] == result_of(plain)["ledger"]


def test_a_run_that_is_too_short_is_left_alone(run: Callable[..., tuple[Any, list[str]]]) -> None:
    config, notes = run("short", epochs=2, profile=True)
    assert result_of(config)["status"] == "finished"
    assert any("too short" in note for note in notes)
