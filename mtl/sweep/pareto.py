"""Gains over the single-task baselines, and which trials no other is better than."""

from collections.abc import Mapping, Sequence

from mtl.sweep.board import Board
from mtl.sweep.objective import METRICS, primaries, primary
from mtl.sweep.record import Trial


def front(points: Mapping[str, Sequence[float]]) -> set[str]:
    """The names of the points that no other is better than: at least as large everywhere, and larger somewhere."""
    return {
        name
        for name, own in points.items()
        if not any(
            all(a >= b for a, b in zip(other, own, strict=True)) and tuple(other) != tuple(own)
            for other in points.values()
        )
    }


def gains(board: Board, trial: Trial) -> dict[str, float] | None:
    """The relative gain of a trial over each task's single-task baseline, larger is better.

    None where there is none to tell: before the baselines have finished, or if one of them is zero.
    """
    single, kinds = board.singles, board.objective.kinds
    if single is None or not all(single.values()) or trial.val.keys() != kinds.keys():
        return None
    own = primaries(trial.val, kinds)
    signs = {task: 1 if METRICS[kind][primary(kind)] else -1 for task, kind in kinds.items()}
    return {task: signs[task] * (own[task] - single[task]) / abs(single[task]) for task in kinds}


def on_front(board: Board) -> set[str]:
    """The ids of the finished trials of all tasks on the Pareto front of the tasks' primary metrics."""
    kinds = board.objective.kinds
    signs = {task: 1 if METRICS[kind][primary(kind)] else -1 for task, kind in kinds.items()}
    finished = [t for t in board.trials if t.kind != "single" and t.status == "finished"]
    return front({t.id: [signs[task] * x for task, x in primaries(t.val, kinds).items()] for t in finished})
