"""A job may die anywhere, any number of times: it ends as if nothing had happened. Real processes, really killed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mtl.config import Checkpoint, Config, Model
from mtl.record import read
from mtl.store import open_store
from tests.helpers.datasets import tiny
from tests.helpers.engine import (
    BATCH_NORM,
    SMALL,
    assert_same_run,
    result_of,
    saved,
    tiny_config,
    train,
)
from tests.helpers.faults import Fault
from tests.helpers.ranks import Group, Outcome, values
from tests.helpers.tensors import assert_same

ALWAYS = Checkpoint(every_s=1e-9, background=False)
BACKWARDS = Model(backbone="tests.helpers.backbones:Backwards", batch_norm="local")

Start = Callable[..., Group]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def data(folder: Path) -> Path:
    tiny(folder / "data", rows={"train": 200, "val": 40, "test": 24}, missing=0.3)
    return folder / "data"


@pytest.fixture(scope="module")
def start(folder: Path) -> Start:
    """Start a job on W ranks."""
    count = iter(range(1000))

    def started(world_size: int, config: Config, *faults: Fault, dtype: torch.dtype = torch.float64) -> Group:
        return Group(folder / f"group-{next(count)}", world_size, train, config, dtype, faults)

    return started


@pytest.fixture(scope="module")
def make(folder: Path, data: Path) -> Callable[..., Config]:
    """A configuration of a new run; committed at every step unless told otherwise."""
    count = iter(range(1000))

    def made(**changes: Any) -> Config:
        changes = {"model": SMALL, "checkpoint": ALWAYS, **changes}
        return tiny_config(data, folder / "runs", f"run-{next(count)}", **changes)

    return made


@pytest.fixture(scope="module")
def whole(make: Callable[..., Config], start: Start) -> Config:
    """A run that nothing happens to."""
    config = make(checkpoint=Checkpoint(background=False))
    values(start(1, config).wait())
    return config


def steps_of(config: Config) -> list[int]:
    """The steps of the run's commits, newest first."""
    record = read(open_store(config.storage).child(config.name))
    return [commit.step for commit in record.checkpoints] if record else []


def died(outcomes: list[Outcome], rank: int) -> None:
    """Assert that `rank` was struck, and that no other mistook that for the end."""
    assert outcomes[rank].exitcode in (-9, 7), outcomes
    assert all(outcome.exitcode for outcome in outcomes)


# An epoch has six steps; evaluation 0 and 1 are those of the two epochs.
DEATHS = {
    "before the first commit": (2, Fault("step", 0, "kill", rank=1), 1),
    "between two commits": (1, Fault("step", 4, "kill"), 2),
    "in the second epoch": (4, Fault("step", 9, "kill", rank=3), 2),
    "while evaluating": (2, Fault("evaluate", 0, "kill"), 4),
    "in the last evaluation": (2, Fault("evaluate", 2, "kill", rank=1), 1),
    "before an upload": (1, Fault("upload", 2, "exit"), 4),
    "after the upload, before the commit": (2, Fault("commit", 5, "exit"), 1),
    "after the commit, before the retention": (2, Fault("retain", 5, "exit"), 2),
}


@pytest.mark.parametrize("when", DEATHS)
def test_death_leaves_no_trace(when: str, make: Callable[..., Config], start: Start, whole: Config) -> None:
    config = make()
    world_size, fault, later = DEATHS[when]
    died(start(world_size, config, fault).wait(), fault.rank)
    values(start(later, config).wait())
    assert_same_run(config, whole)


def test_many_deaths_leave_no_trace(make: Callable[..., Config], start: Start, whole: Config) -> None:
    config = make()
    for world_size, step in ((2, 2), (1, 5), (3, 7), (2, 10)):
        died(start(world_size, config, Fault("step", step, "kill")).wait(), 0)
    values(start(4, config).wait())
    assert_same_run(config, whole)


def test_death_far_from_a_commit_costs_only_time(make: Callable[..., Config], start: Start, whole: Config) -> None:
    config = make(checkpoint=Checkpoint(background=False))
    died(start(2, config, Fault("step", 10, "kill", rank=1)).wait(), 1)
    assert steps_of(config) == [6]
    values(start(2, config).wait())
    assert_same_run(config, whole)


@pytest.mark.parametrize("rank", [0, 1])
def test_request_to_stop_reaches_all_ranks_at_one_step(
    rank: int, make: Callable[..., Config], start: Start, whole: Config
) -> None:
    config = make(checkpoint=Checkpoint(background=False))
    first, second = values(start(2, config, Fault("step", 3, "terminate", rank=rank)).wait())
    assert first["status"] == second["status"] == "stopped"
    # The step it arrives in, and the one whose agreement is already under way.
    assert first["steps"] == second["steps"] == 5
    assert steps_of(config) == [5]
    record = read(open_store(config.storage).child(config.name))
    assert record is not None
    assert (record.status, record.owner) == ("stopped", None)
    results = values(start(4, config, Fault("step", 4, "forbid")).wait())
    assert {result["status"] for result in results} == {"finished"}
    assert_same_run(config, whole)


@pytest.mark.parametrize("world_size", [2, 3, pytest.param(4, marks=pytest.mark.slow)])
def test_same_worker_count_resumes_bit_by_bit(world_size: int, make: Callable[..., Config], start: Start) -> None:
    undisturbed, killed = make(model=BACKWARDS, checkpoint=Checkpoint(background=False)), make(model=BACKWARDS)
    values(start(world_size, undisturbed, dtype=torch.float32).wait())
    for step in (4, 9):
        died(start(world_size, killed, Fault("step", step, "kill"), dtype=torch.float32).wait(), 0)
    values(start(world_size, killed, dtype=torch.float32).wait())
    assert result_of(killed)["ledger"] == result_of(undisturbed)["ledger"]
    assert result_of(killed)["metrics"] == result_of(undisturbed)["metrics"]
    assert_same(saved(killed), saved(undisturbed))


@pytest.mark.parametrize("precision", ["fp32", pytest.param("fp16", marks=pytest.mark.slow)])
def test_background_commits_average_and_precision_survive_death(
    precision: str, make: Callable[..., Config], start: Start
) -> None:
    """Local batch norm: running statistics, and their averages, differ between ranks until a commit."""
    model = SMALL.model_copy(update={"backbone_args": {"norm": "batch"}})
    optimizer = make().optimizer.model_copy(update={"ema_epochs": 0.7})
    changes: dict[str, Any] = {"model": model, "optimizer": optimizer, "precision": precision}
    changes["checkpoint"] = Checkpoint(background=True)
    undisturbed, killed = make(**changes), make(**changes)
    values(start(2, undisturbed, dtype=torch.float32).wait())
    died(start(2, killed, Fault("step", 8, "kill", rank=1), dtype=torch.float32).wait(), 1)
    assert steps_of(killed) == [6]
    values(start(2, killed, dtype=torch.float32).wait())
    assert_same(saved(killed), saved(undisturbed))
    assert result_of(killed)["metrics"] == result_of(undisturbed)["metrics"]
    assert "test-ema" in result_of(killed)["metrics"]


def test_a_stop_waits_for_the_commit_that_is_written(make: Callable[..., Config], start: Start) -> None:
    config = make(checkpoint=Checkpoint(every_s=1e-9))
    first, _ = values(start(2, config, Fault("step", 3, "terminate")).wait())
    assert first["status"] == "stopped"
    assert steps_of(config)[0] == first["steps"] == 5


def test_a_step_without_finite_gradient_is_skipped_by_all(make: Callable[..., Config], start: Start) -> None:
    alone, together = make(model=BATCH_NORM, global_batch=64), make(model=BATCH_NORM, global_batch=64)
    values(start(1, alone, Fault("step", 1, "blind")).wait())
    first, second = values(start(2, together, Fault("step", 1, "blind", rank=1)).wait())
    assert first["skipped"] == second["skipped"] == 1
    assert first["digest"] == second["digest"]
    assert all(tensor.isfinite().all() for tensor in saved(together).values())
    assert_same_run(together, alone)


@pytest.mark.parametrize("world_size", [1, 2])
def test_finished_stays_finished(world_size: int, start: Start, whole: Config) -> None:
    store = open_store(whole.storage).child(whole.name)
    before = {key: store.get(key) for key in store.list()}
    for result in values(start(world_size, whole, Fault("step", 0, "forbid"), Fault("evaluate", 0, "forbid")).wait()):
        del result["digest"]
        assert result == result_of(whole)
    assert {key: store.get(key) for key in store.list()} == before
