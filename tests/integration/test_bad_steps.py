"""Steps without a finite gradient, many in a row: the run goes back, passes their samples over, and names them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mtl.config import Checkpoint, Config, Optimizer
from mtl.mixing import training_order, training_sets
from mtl.record import Record, read
from mtl.rewind import BAD_STEPS, images
from mtl.store import open_store
from tests.helpers.datasets import tiny
from tests.helpers.engine import SMALL, assert_same_run, result_of, saved, tiny_config, train
from tests.helpers.faults import Fault
from tests.helpers.ranks import Group, Outcome, values

# An epoch has six steps.
STREAK = range(3, 3 + BAD_STEPS)
POISONED = tuple(Fault("step", step, "blind") for step in STREAK)
UNTOUCHED = tuple(Fault("step", step, "forbid") for step in STREAK)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bad-steps")
    tiny(path / "data", rows={"train": 200, "val": 40, "test": 24}, missing=0.3)
    return path


@pytest.fixture(scope="module")
def run(folder: Path) -> Callable[..., list[Outcome]]:
    count = iter(range(1000))

    def trained(world_size: int, config: Config, *faults: Fault) -> list[Outcome]:
        return Group(folder / f"group-{next(count)}", world_size, train, config, torch.float64, faults).wait()

    return trained


def config(folder: Path, name: str, **changes: Any) -> Config:
    changes = {"model": SMALL, "checkpoint": Checkpoint(), "epochs": 4, **changes}
    return tiny_config(folder / "data", folder / "runs", name, **changes)


def record(config: Config) -> Record:
    found = read(open_store(config.storage).child(config.name))
    assert found is not None
    return found


@pytest.fixture(scope="module")
def whole(folder: Path, run: Callable[..., list[Outcome]]) -> Config:
    """A run of one worker with a poisoned stretch, which nothing else happens to."""
    made = config(folder, "whole")
    values(run(1, made, *POISONED))
    return made


def test_the_run_goes_back_and_names_what_it_passes_over(whole: Config) -> None:
    found, result = record(whole), result_of(whole)
    (span,) = found.skipped
    assert (span.first, span.last) == (STREAK[0], STREAK[-1])
    assert (found.status, found.attempt) == ("finished", 2)
    assert (result["steps"], result["skipped"]) == (24, BAD_STEPS)
    assert [(one["attempt"], one["cause"]) for one in result["restarts"]] == [(2, "bad steps")]
    assert all(tensor.isfinite().all() for tensor in saved(whole).values())
    named = images(open_store(whole.storage).child(whole.name), found.skipped)
    assert len(named) == BAD_STEPS * whole.global_batch
    # Three steps of the first epoch, all six of the second, one of the third: none twice within an epoch.
    assert len(set(named[: 3 * 32])) == 96
    assert all(name.startswith("train/") for name in named)
    assert training_order(whole, training_sets(whole)).steps == 6


def test_all_ranks_go_back_together(folder: Path, run: Callable[..., list[Outcome]], whole: Config) -> None:
    together = config(folder, "together")
    # The images of the second rank alone are poisoned.
    poisoned = [Fault("step", step, "blind", rank=1) for step in STREAK]
    first, second = values(run(2, together, *poisoned))
    assert first["digest"] == second["digest"]
    assert_same_run(together, whole)
    assert record(together).skipped == record(whole).skipped


@pytest.mark.parametrize("at", [8, 14])
def test_a_death_in_the_streak_or_after_it_changes_nothing(
    at: int, folder: Path, run: Callable[..., list[Outcome]], whole: Config
) -> None:
    killed = config(folder, f"killed-{at}", checkpoint=Checkpoint(every_s=1e-9) if at == 8 else Checkpoint())
    assert run(2, killed, *POISONED, Fault("step", at, "kill"))[0].exitcode == -9
    values(run(1, killed, *(POISONED if at == 8 else UNTOUCHED)))
    assert_same_run(killed, whole)
    assert record(killed).skipped == record(whole).skipped


def test_a_deranged_state_is_left_behind_with_what_led_to_it(folder: Path, run: Callable[..., list[Outcome]]) -> None:
    deranged = config(
        folder, "deranged", epochs=7, optimizer=Optimizer(name="sgd", lr=1e-3, warmup_epochs=0, clip_norm=None)
    )
    (result,) = values(run(1, deranged, Fault("step", 7, "derange")))
    found = record(deranged)
    assert len(found.skipped) == 2, found.skipped
    streak, everything = found.skipped
    assert 7 < streak.first < 12
    assert everything.first == 6, "all since the commit"
    assert streak.last < everything.last <= streak.last + 2 * BAD_STEPS
    assert result["status"] == "finished"
    assert all(tensor.isfinite().all() for tensor in saved(deranged).values())


def test_divergence_ends_the_run(folder: Path, run: Callable[..., list[Outcome]]) -> None:
    diverging = config(folder, "diverging", epochs=8)
    faults = [Fault("step", step, "blind", rank=1) for step in range(7, 48)]
    for outcome in run(2, diverging, *faults):
        assert outcome.error == "MtlError"
        assert "10 steps in a row had no finite gradient, and as many after going back" in outcome.text
    found = record(diverging)
    assert (found.status, found.owner) == ("failed", None)
    assert found.checkpoints[-1].step == 6, "what was committed before stands"
    assert [(span.first, span.last) for span in found.skipped] == [(7, 16), (6, 26)]
