"""What the training split of a data set tells a task of its label."""

from typing import TypedDict

from mtl.data.derivation import tree_paths
from mtl.data.manifest import LabelCount, Manifest
from mtl.data.taxonomy import Path
from mtl.task_config import Task


class Known(TypedDict):
    """The arguments of `mtl.tasks.build` that are read from a manifest."""

    classes: tuple[str, ...] | None
    low: tuple[float, ...]
    high: tuple[float, ...]
    counts: tuple[int, ...] | None
    known: tuple[int, ...] | None
    paths: list[Path] | None


def known(task: Task, manifest: Manifest) -> Known:
    """What `manifest` says of the label that `task` reads.

    Raises:
        DataError: the task asks for a tree that can not be made.
    """
    label, rows = manifest.labels[task.columns[0]], manifest.split("train").labels
    counts = [rows[column] for column in task.columns]
    first = counts[0]
    classes = label.classes if len(counts) == 1 else task.columns
    answers = task.kind in ("binary", "multilabel") and label.kind != "set"
    return Known(
        classes=classes,
        low=_ends(first.lows, first.low),
        high=_ends(first.highs, first.high),
        counts=tuple(map(_yes, counts)) if answers else first.histogram,
        known=first.known or tuple(count.valid for count in counts),
        paths=None if task.tree is None else tree_paths(task.tree, task.label, manifest),
    )


def _ends(entries: tuple[float | None, ...] | None, single: float | None) -> tuple[float, ...]:
    return (single or 0.0,) if entries is None else tuple(entry or 0.0 for entry in entries)


def _yes(count: LabelCount) -> int:
    return (count.histogram or (0, 0))[1]
