import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from mtl.on_ray.tune import Conduct, Halving, Trials
from mtl.sweep.board import Board
from tests.helpers.sweeps import board_at, execute, metrics_of


def hooks(board: Board) -> tuple[Conduct, Trials, Halving, list[str]]:
    """What Tune calls, and whom it asked to stop."""
    conduct, stopped = Conduct(board), list[str]()
    return conduct, Trials(conduct), Halving(conduct, stopped.append), stopped


def as_tune(name: str) -> Any:
    return SimpleNamespace(trial_id=f"tune-{name}", config={"trial": name})


def report(halving: Halving, name: str, epoch: int, accuracy: float) -> str:
    metrics = {"object": {"accuracy": accuracy}, "angle": {"error_degrees": 30.0}}
    return halving.on_trial_result(None, as_tune(name), {"epoch": epoch, "val": json.dumps(metrics)})


def strict(tmp_path: Path) -> Board:
    """A board on which the better half goes on, from the first epoch on."""
    return board_at(tmp_path, metric="object/accuracy", grace=1, reduction=2)


def ready(tmp_path: Path) -> Board:
    """Such a board whose baselines have finished, so that sampled trials come next."""
    with strict(tmp_path) as board:
        execute(board, 3)
    return strict(tmp_path)


def test_tune_gets_trials_until_there_are_no_more(tmp_path: Path) -> None:
    with board_at(tmp_path) as board:
        conduct, trials, _, _ = hooks(board)
        first = [trials.suggest(f"tune{number}") for number in range(3)]
        assert [point["trial"] for point in first] == ["single-object", "single-angle", "uniform"]
        assert "name: single-object" in first[0]["config"]
        assert trials.suggest("tune3") is None  # for the baselines
        for number, trial in enumerate(board.trials):
            val = json.dumps(metrics_of(board, trial, 4))
            trials.on_trial_complete(f"tune{number}", {"outcome": "finished", "val": val, "test": val})
        assert all(trials.suggest(f"tune{number}") for number in range(3, 7))
        assert trials.suggest("tune7") == Searcher.FINISHED
        assert conduct.error is None


def test_a_trial_that_falls_behind_is_asked_to_stop_and_never_killed(tmp_path: Path) -> None:
    with ready(tmp_path) as board:
        _, trials, halving, stopped = hooks(board)
        for number in range(3):
            trials.suggest(f"tune{number}")
        assert report(halving, "t001", 1, 0.8) == TrialScheduler.CONTINUE
        assert report(halving, "t002", 1, 0.4) == TrialScheduler.CONTINUE
        assert report(halving, "t003", 1, 0.9) == TrialScheduler.CONTINUE
        assert stopped == ["t002"]
        assert report(halving, "t002", 2, 0.1) == TrialScheduler.CONTINUE  # it goes on until it notices
        assert stopped == ["t002"]
        trials.on_trial_complete("tune1", {"outcome": "stopped"})
        assert [trial.status for trial in board.trials[-3:]] == ["started", "pruned", "started"]


def test_neither_baselines_nor_a_last_epoch_are_judged(tmp_path: Path) -> None:
    with strict(tmp_path) as board:
        _, trials, halving, stopped = hooks(board)
        for number in range(5):
            trials.suggest(f"tune{number}")
        report(halving, "t001", 1, 0.9)
        report(halving, "uniform", 1, 0.1)
        report(halving, "t002", 4, 0.1)
        assert stopped == []


def test_a_trial_without_a_number_is_stopped_at_once_and_spoils_no_percentile(tmp_path: Path) -> None:
    with ready(tmp_path) as board:
        _, trials, halving, stopped = hooks(board)
        for number in range(3):
            trials.suggest(f"tune{number}")
        report(halving, "t001", 1, float("nan"))
        report(halving, "t002", 1, 0.5)
        report(halving, "t003", 1, 0.4)
        assert stopped == ["t001", "t003"]


def test_a_restored_scheduler_judges_by_the_trials_of_the_driver_before(tmp_path: Path) -> None:
    with ready(tmp_path) as board:
        execute(board, 2)
    with strict(tmp_path) as board:
        _, trials, halving, stopped = hooks(board)
        trials.suggest("tune0")
        report(halving, "t003", 1, 0.01)
        assert stopped == ["t003"]


@pytest.mark.parametrize("error", [True, False])
def test_a_failed_trial_goes_to_the_board(tmp_path: Path, error: bool) -> None:
    with ready(tmp_path) as board:
        conduct, trials, _, _ = hooks(board)
        trials.suggest("tune0")
        trials.on_trial_complete("tune0", None if error else {"outcome": "failed", "error": "diverged"}, error)
        assert board.trials[-1].status == "failed"
        assert conduct.error is None


def test_an_error_in_a_hook_is_kept_and_ends_the_search(tmp_path: Path) -> None:
    with board_at(tmp_path) as board:
        conduct, trials, _, _ = hooks(board)
        trials.suggest("tune0")
        trials.on_trial_complete("tune0", {"outcome": "failed", "error": "out of memory"})
        assert conduct.error is not None
        assert "baseline 'single-object' failed" in str(conduct.error)
        assert trials.suggest("tune1") == Searcher.FINISHED
