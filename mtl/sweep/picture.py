"""The Pareto picture: what trials gain and lose on each task against a model that was trained on that task alone."""

import io
import textwrap
from itertools import combinations
from typing import TYPE_CHECKING, Any

from mtl.sweep.board import Board
from mtl.sweep.objective import primaries, primary
from mtl.sweep.pareto import gains, on_front
from mtl.sweep.record import Trial
from mtl.task_config import METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_TASKS = 6
"""Panels grow with the square of the tasks; beyond this many, those on which the trials differ least are left out."""

_STYLES: dict[str, dict[str, Any]] = {
    "started": {"marker": ".", "color": "0.7"},
    "pruned": {"marker": "x", "color": "0.6"},
    "finished": {"marker": "o", "color": "tab:blue"},
    "uniform weights": {"marker": "s", "color": "tab:orange", "s": 60},
    "Pareto front": {"marker": "o", "facecolors": "none", "edgecolors": "black", "s": 170},
    "chosen": {"marker": "*", "color": "tab:green", "s": 160},
}


def draw(board: Board) -> bytes:
    """A PNG with one panel for each pair of tasks: right and up is better, dashed lines are the single-task baselines.

    Axes are gains in percent of the single-task baselines; primary metrics themselves where a baseline is zero or is
    not there. With one task there is one panel: that metric by the first field that was searched.
    """
    from matplotlib.figure import Figure

    places = {trial.id: values for trial in board.trials if (values := _values(board, trial))}
    tasks = sorted(board.objective.kinds, key=lambda task: -_spread([place[task] for place in places.values()]))
    tasks = [task for task in board.objective.kinds if task in tasks[:MOST_TASKS]]
    pairs = list(combinations(tasks, 2)) or [(next(iter(board.terms.space.ranges)), tasks[0])]
    columns = min(len(pairs), 3)
    rows = -(-len(pairs) // columns)
    figure = Figure(figsize=(4.6 * columns, 4.2 * rows + 0.8), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, (x, y) in zip(panels, pairs, strict=False):
        _panel(panel, board, {id_: (place[x], place[y]) for id_, place in places.items()})
        _axes(panel, board, x, y)
    for panel in panels[len(pairs) :]:
        panel.set_axis_off()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3 * columns, frameon=False)
    title = textwrap.fill(f"{board.config.name}: {board.progress()}", 60 * columns)
    figure.suptitle(title, fontsize="medium")
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    return data.getvalue()


def _panel(panel: "Axes", board: Board, places: dict[str, tuple[float, float]]) -> None:
    best, pareto = board.best, on_front(board)
    groups: dict[str, list[tuple[float, float]]] = {}
    for trial in board.trials:
        if trial.id not in places:
            continue
        kinds = ["uniform weights" if trial.kind == "uniform" else trial.status]
        kinds += ["Pareto front"] if trial.id in pareto else []
        if best is not None and trial.id == best.id:
            kinds.append("chosen")
            panel.annotate(f"  {trial.id}", places[trial.id], fontsize="small")
        for kind in kinds:
            groups.setdefault(kind, []).append(places[trial.id])
    for name, style in _STYLES.items():
        if name in groups:
            x, y = zip(*groups[name], strict=True)
            panel.scatter(x, y, label=name, zorder=3, **style)


def _axes(panel: "Axes", board: Board, x: str, y: str) -> None:
    kinds = board.objective.kinds
    relative = _relative(board)
    single = {task: 0.0 for task in kinds} if relative else board.singles or {}
    for name, label, line, invert in (
        (x, panel.set_xlabel, panel.axvline, panel.invert_xaxis),
        (y, panel.set_ylabel, panel.axhline, panel.invert_yaxis),
    ):
        if name not in kinds:
            label(name)
            panel.set_xscale(board.terms.space.ranges[name].scale)
            continue
        metric = primary(kinds[name])
        label(f"{name}: {metric.replace('_', ' ')}" + (", gain over single-task, %" if relative else ""))
        if name in single:
            line(single[name], color="0.5", linestyle="--", linewidth=1)
        if not relative and not METRICS[kinds[name]][metric]:
            invert()
    panel.margins(0.15)
    panel.grid(alpha=0.25)


def _values(board: Board, trial: Trial) -> dict[str, float]:
    """Where a trial lies, by task and by searched field; empty for one that is not in the picture."""
    kinds = board.objective.kinds
    if trial.val.keys() != kinds.keys() or trial.status == "failed" or (trial.kind == "single" and len(kinds) > 1):
        return {}
    relative = gains(board, trial) if _relative(board) else None
    found = primaries(trial.val, kinds) if relative is None else {task: 100 * x for task, x in relative.items()}
    if len(kinds) == 1:
        if not trial.values:
            return {}
        found |= trial.values
    return found


def _relative(board: Board) -> bool:
    singles = board.singles
    return singles is not None and all(singles.values())


def _spread(values: list[float]) -> float:
    return max(values, default=0.0) - min(values, default=0.0)
