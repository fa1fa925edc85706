"""One rank's job from the configuration to the result, in this process: what it writes, what it resumes from."""

import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from mtl import job, local
from mtl.attempt import begin_attempt
from mtl.config import Checkpoint, Config
from mtl.console import RunConsole
from mtl.errors import CheckpointError, ConfigError, RunLost, StoreError
from mtl.job import Job
from mtl.runtime import Runtime
from mtl.store import Store
from mtl.tracking import Trackers
from tests.helpers import whole_jobs
from tests.helpers.datasets import tiny
from tests.helpers.engine import SMALL, assert_same_run, record_of, result_of, rows, saved, store_of, tiny_config
from tests.helpers.trackers import read_events
from tests.helpers.whole_jobs import Crash, Events, crash_at_step

pytestmark = pytest.mark.usefixtures("numerics_as_before")

run = partial(whole_jobs.run, dtype=torch.float64)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    tiny(folder / "data")
    return folder / "data"


@pytest.fixture
def make(data: Path, tmp_path: Path) -> Callable[..., Config]:
    """A configuration: two epochs of three steps."""

    def made(name: str = "tiny", **changes: Any) -> Config:
        return tiny_config(data, tmp_path / "runs", name, **{"model": SMALL, **changes})

    return made


def notes(events: Events) -> list[str]:
    return [event["text"] for event in events if event["kind"] == "note"]


def test_a_run_from_beginning_to_end(make: Callable[..., Config]) -> None:
    config = make()
    events = run(config)
    assert [event["kind"] for event in events if event["kind"] != "progress"] == [
        *("note", "note", "blame", "evaluation", "commit"),
        *("blame", "evaluation", "commit", "blame", "evaluation"),
    ]
    result = result_of(config)
    assert (result["status"], result["steps"], result["epochs"]) == ("finished", 6, 2.0)
    assert (result["quarantined"], result["skipped"]) == (0, 0)
    assert result["parameters"] == sum(tensor.numel() for tensor in saved(config).values())
    assert set(result["metrics"]) == {"val", "test"}
    assert torch.are_deterministic_algorithms_enabled()

    record = record_of(config)
    assert [(c.step, c.epoch, c.samples) for c in record.checkpoints] == [(6, 2, 192), (3, 1, 96)]
    attempt = json.loads(store_of(config).get("attempts/1.json"))
    assert (attempt["attempt"], attempt["step"], attempt["workers"], attempt["after"]) == (1, 0, 1, None)
    assert (
        0 < result["useful_s"] == attempt["useful_s"] < result["wall_s"] + 1
    )  # of its beginning only seconds are kept
    assert result["goodput"] == result["useful_s"] / result["wall_s"]
    assert result["restarts"] == []
    evaluations = {at: row for at, row in rows(config).items() if row.get("kind") == "evaluation"}
    assert [at[1:] for at in cast("list[tuple[Any, ...]]", list(evaluations))] == [(1, "val"), (2, "val"), (2, "test")]
    assert evaluations[None, 2, "test"]["metrics"] == result["metrics"]["test"]
    assert evaluations[None, 2, "val"]["metrics"] == result["metrics"]["val"]
    assert {at[0] for at in cast("list[tuple[Any, ...]]", list(rows(config)))} == {None, *range(1, 7)}


def test_a_run_says_what_its_speed_comes_to(make: Callable[..., Config]) -> None:
    config = make(resources=make().resources.model_copy(update={"price_per_hour": 2.0}))
    events = run(config)
    lines = [event for event in events if event["kind"] == "progress"]
    assert all(line["mfu"] > 0 and line["cost_per_epoch"] > 0 for line in lines)
    result = result_of(config)
    assert result["images_per_s"] == pytest.approx(192 / result["useful_s"])
    assert result["mfu"] > 0
    assert result["cost"] == pytest.approx(2 * result["cost_per_epoch"])
    assert any("GFLOP, forward and backward" in note for note in notes(events))


def test_a_resumed_run_continues_its_curves(make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    config = make(checkpoint=Checkpoint(every_s=1e-9, background=False))
    crash_at_step(monkeypatch, 5)
    with pytest.raises(Crash):
        run(config)
    run(config)
    store, found = store_of(config), dict[int, int]()
    for key in sorted(store.list("tensorboard/")):
        for event in read_events(store.get(key)):
            if event.HasField("session_log"):
                found = {step: attempt for step, attempt in found.items() if step < event.step}
            if any(value.tag == "loss/object" for value in event.summary.value):
                found[event.step] = int(key.partition(".a")[2][:5])
    assert found == {1: 1, 2: 1, 3: 1, 4: 1, 5: 2, 6: 2}


def test_training_learns_something(make: Callable[..., Config]) -> None:
    config = make(epochs=8)
    run(config)
    first, last = (rows(config)[None, epoch, "val"]["metrics"] for epoch in (1, 8))
    assert all(last[task]["loss"] < first[task]["loss"] for task in ("object", "kind", "angle", "amount"))
    assert last["kind"]["accuracy"] > 0.8


def test_a_job_whose_time_is_over_stops(make: Callable[..., Config]) -> None:
    said = io.StringIO()
    result = local.train(make(max_hours=1e-9), RunConsole(said))
    assert (result["status"], result["steps"]) == ("stopped", 0)
    assert "the time of this job is over" in said.getvalue()
    assert record_of(make()).status == "stopped"
    assert local.train(make(), RunConsole(said))["status"] == "finished"


def test_a_damaged_commit_is_left_out_loudly(make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    whole, config = make("whole"), make(checkpoint=Checkpoint(every_s=1e-9, background=False))
    run(whole)
    crash_at_step(monkeypatch, 5)
    with pytest.raises(Crash):
        run(config)
    newest, before = record_of(config).checkpoints
    assert (newest.step, before.step) == (4, 3)
    key = f"{newest.path}/optimizer.safetensors"
    data = bytearray(store_of(config).get(key))
    data[-1] ^= 1
    store_of(config).put(key, bytes(data))
    told = notes(run(config))
    assert any("checkpoint of step 4 is not used" in note for note in told)
    assert "resumed from the commit of step 3" in told
    assert_same_run(config, whole)


def test_useful_time_is_that_of_the_commit_which_was_resumed(
    make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make()
    crash_at_step(monkeypatch, 6)
    with pytest.raises(Crash):
        run(config)
    first = json.loads(store_of(config).get("attempts/1.json"))
    run(config)
    second = json.loads(store_of(config).get("attempts/2.json"))
    assert 0 < first["useful_s"] < second["useful_s"] == result_of(config)["useful_s"]
    assert first["job"] != second["job"]


def test_only_damaged_commits_are_an_error(make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    config = make()
    crash_at_step(monkeypatch, 6)
    with pytest.raises(Crash):
        run(config)
    (commit,) = record_of(config).checkpoints
    store_of(config).delete(f"{commit.path}/state.json")
    with pytest.raises(CheckpointError, match="No checkpoint of the run"):
        run(config)
    assert record_of(config).status == "failed"


def test_another_order_is_refused(make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    crash_at_step(monkeypatch, 6)
    with pytest.raises(Crash):
        run(make())
    with pytest.raises(CheckpointError, match="another order of samples"):
        run(make(seed=1))


def test_another_model_is_refused(make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    crash_at_step(monkeypatch, 6)
    with pytest.raises(Crash):
        run(make())
    with pytest.raises(CheckpointError, match="another model"):
        run(make(model=SMALL.model_copy(update={"head_hidden": 3})))


def test_initial_weights_are_read_once(make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    run(make())
    file = Path(make().storage) / "tiny" / record_of(make()).checkpoints[0].path / "model.safetensors"
    pretrained = SMALL.model_copy(update={"init_from": str(file)})
    tasks = {**make().tasks, "other": make().tasks["kind"]}
    crash_at_step(monkeypatch, 6)
    config = make("tuned", model=pretrained, tasks=tasks)
    with pytest.raises(Crash):
        run(config)
    file.unlink()
    told = notes(run(config))
    assert not any("loaded" in text for text in told), "a resumed run goes on from its checkpoint"
    assert any(text.startswith("resumed") for text in told)
    with pytest.raises(ConfigError, match="can not be read"):
        run(make("again", model=pretrained))


def test_what_initial_weights_leave_out_is_said(make: Callable[..., Config]) -> None:
    run(make())
    file = Path(make().storage) / "tiny" / record_of(make()).checkpoints[0].path / "model.safetensors"
    tasks = {**make().tasks, "other": make().tasks["kind"]}
    told = notes(run(make("tuned", model=SMALL.model_copy(update={"init_from": str(file)}), tasks=tasks, epochs=1)))
    assert any(f"tensors loaded from {file}" in text for text in told)
    assert any("the file has none: heads.other.out.weight" in text for text in told)


def test_more_epochs_go_on_from_an_unfinished_run(make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    crash_at_step(monkeypatch, 6)
    with pytest.raises(Crash):
        run(make())
    run(make(epochs=3))
    assert result_of(make())["steps"] == 9


def test_a_finished_run_whose_end_was_not_recorded_only_needs_its_test(
    make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, whole = make(), make("whole")
    run(whole)
    with monkeypatch.context() as patch:
        patch.setattr(Trackers, "close", refuse_after(Trackers.close, 0))
        with pytest.raises(Crash):
            run(config)
    assert record_of(config).status == "failed"
    told = run(config)
    assert [event["split"] for event in told if event["kind"] == "evaluation"] == ["test"]
    assert_same_run(config, whole)


def refuse_after(function: Callable[..., Any], times: int) -> Callable[..., Any]:
    calls = iter(range(times))

    def limited(*args: Any) -> Any:
        if next(calls, None) is None:
            raise Crash
        return function(*args)

    return limited


def test_a_newer_attempt_stops_this_one(make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    config = make()
    save = job.save

    def overtaken(store: Store, *args: Any) -> str:
        owner = record_of(config).owner
        assert owner is not None
        begin_attempt(store, owner.id)
        return save(store, *args)

    monkeypatch.setattr(job, "save", overtaken)
    with pytest.raises(RunLost, match="Attempt 1 of run 'tiny' was replaced"):
        run(config)
    assert record_of(config).checkpoints == ()


def test_old_checkpoints_that_can_not_be_deleted_do_not_stop_a_run(
    make: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise StoreError("The disk is in a bad mood.")

    monkeypatch.setattr(job, "retain", failing)
    assert sum("could not be deleted" in note for note in notes(run(make()))) == 2


class Odd:
    """A rank of two whose peer has loaded the checkpoint of another step."""

    rank, world_size, device = 1, 2, torch.device("cpu")

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return 2 * values + 3

    def emit(self, event: dict[str, Any]) -> None:
        pass


def test_ranks_that_load_different_checkpoints_stop(make: Callable[..., Config]) -> None:
    with pytest.raises(CheckpointError, match="could not load the same checkpoint"):
        Job(make(), cast("Runtime", Odd()), "").run()


def test_a_run_can_be_repeated_bit_by_bit(make: Callable[..., Config]) -> None:
    first, second = make("first"), make("second")
    run(first)
    torch.manual_seed(123)
    run(second)
    assert all(tensor.equal(saved(second)[name]) for name, tensor in saved(first).items())
    assert result_of(first)["ledger"] == result_of(second)["ledger"]
    other = make("other", seed=1)
    run(other)
    assert result_of(first)["ledger"] != result_of(other)["ledger"]
    assert result_of(first)["metrics"] != result_of(other)["metrics"]
