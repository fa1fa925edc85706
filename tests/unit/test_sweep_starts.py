"""Points that a sweep tries first."""

from pathlib import Path
from typing import Any

import pytest

from mtl.errors import CheckpointError, ConfigError
from tests.helpers.sweeps import board_at, execute

START = {"tasks.object.weight": 3.0, "tasks.angle.weight": 1.0}


def test_starts_are_the_first_trials_and_the_search_goes_on_behind_them(tmp_path: Path) -> None:
    with board_at(tmp_path / "plain") as plain:
        execute(plain)
    with board_at(tmp_path / "begun", starts=(START,)) as board:
        execute(board)
        first, *others = [trial for trial in board.trials if trial.kind == "sampled"]
    assert first.values["tasks.object.weight"] == pytest.approx(1.5)
    assert first.values["tasks.angle.weight"] == pytest.approx(0.5)
    assert first.values["optimizer.lr"] == pytest.approx(board.config.optimizer.lr, rel=1e-3)
    assert [trial.values for trial in others] == [t.values for t in plain.trials if t.kind == "sampled"][1:]


def test_more_starts_than_trials_are_cut(tmp_path: Path) -> None:
    starts = tuple({"optimizer.lr": lr} for lr in (1e-3, 2e-3, 3e-3, 4e-3))
    with board_at(tmp_path, trials=2, starts=starts) as board:
        execute(board)
        rates = [trial.values["optimizer.lr"] for trial in board.trials if trial.kind == "sampled"]
    assert rates == pytest.approx([1e-3, 2e-3], rel=1e-3)


@pytest.mark.parametrize(
    "start",
    [
        {"tasks.nobody.weight": 1.0},
        {"optimizer.lr": 1e9},
        {"tasks.object.weight": -1.0},
        {"tasks.object.weight": 0.0, "tasks.angle.weight": 0.0},
    ],
)
def test_a_start_outside_the_space_is_refused(tmp_path: Path, start: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="starting point"):
        board_at(tmp_path, starts=(start,))


@pytest.mark.parametrize("before", [{}, {"starts": ({"optimizer.lr": 1e-3},)}])
def test_a_sweep_goes_on_with_the_starts_it_was_begun_with(tmp_path: Path, before: dict[str, Any]) -> None:
    with board_at(tmp_path, **before) as board:
        execute(board, 1)
    with pytest.raises(CheckpointError, match="another search space"), board_at(tmp_path, starts=(START,)):
        pass
    with board_at(tmp_path, **before) as board:
        execute(board)
        assert board.finished
