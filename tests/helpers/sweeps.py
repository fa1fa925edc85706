"""Sweeps without training: a board whose trials get metrics from a formula."""

import math
from pathlib import Path
from typing import Any

from mtl.config import Config, Task
from mtl.sweep.board import Board
from mtl.sweep.record import Trial
from mtl.sweep.settings import Sweep
from tests.helpers.jobs import tiny_config

TWO = {"object": Task(kind="multiclass", label="object"), "angle": Task(kind="circular", label="angle")}
"""Two tasks, one whose metric grows and one whose metric falls as it gets better."""


def sweep_of(**changes: Any) -> Sweep:
    return Sweep.model_validate({"trials": 4, "search": "random", **changes})


def board_at(storage: Path, said: list[str] | None = None, *, config: Config | None = None, **changes: Any) -> Board:
    """A board of a two-task sweep below `storage`; `changes` are settings of the sweep."""
    config = config or tiny_config("data", storage, name="sweep", tasks=TWO, epochs=4)
    lines = said if said is not None else []
    return Board(config, sweep_of(**changes), lines.append)


def metrics_of(board: Board, trial: Trial, epoch: int) -> dict[str, dict[str, float]]:
    """What the trial measures after `epoch` epochs: tasks with more weight do better, a far learning rate is worse."""
    config = board.terms.config_of(trial)
    far = abs(math.log10(config.optimizer.lr / board.config.optimizer.lr))
    learnt = epoch / config.epochs / (1 + far)
    total = sum(task.weight for task in config.tasks.values())
    found: dict[str, dict[str, float]] = {}
    for name, task in config.tasks.items():
        share = task.weight / total
        if task.kind == "circular":
            degrees = 90 - 60 * learnt * share**0.5
            found[name] = {"error_degrees": degrees, "within_15_degrees": 0.1, "loss": 1.0, "labels": 24}
        else:
            accuracy = 0.3 + 0.6 * learnt * share**0.5
            found[name] = dict.fromkeys(("accuracy", "precision", "recall", "f1"), accuracy) | {"loss": 1.0}
    return found


def execute(board: Board, most: int | None = None) -> list[str]:
    """Run trials one after the other until the board has no more, or `most` have run; their ids."""
    ran: list[str] = []
    while (most is None or len(ran) < most) and (trial := board.next()) is not None:
        ran.append(trial.id)
        for epoch in range(1, board.config.epochs + 1):
            board.report(trial.id, epoch, metrics_of(board, trial, epoch))
        end = metrics_of(board, trial, board.config.epochs)
        board.end(trial.id, "finished", val=end, test=end)
    return ran
