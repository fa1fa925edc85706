"""What a task is: how wide its head, how its loss is counted, how its predictions are tallied. One kind a file.

A loss is a pair (numerator, denominator), so that means are exact over any split of a batch: the numerators and the
denominators are summed first and divided once. A missing label contributes nothing to either, and its zero stays
connected to the graph, so that a batch without any label of a task still has a backward.
"""

from collections.abc import Sequence

from mtl import losses
from mtl.errors import ConfigError
from mtl.task_config import Task
from mtl.tasks.base import TaskSpec
from mtl.tasks.binary import Binary
from mtl.tasks.circular import Circular
from mtl.tasks.multiclass import Multiclass
from mtl.tasks.multilabel import Multilabel
from mtl.tasks.ordinal import Ordinal
from mtl.tasks.regression import Regression
from mtl.tasks.soft import Soft
from mtl.tree import Path, ancestor_heights

__all__ = [
    "Binary",
    "Circular",
    "Multiclass",
    "Multilabel",
    "Ordinal",
    "Regression",
    "Soft",
    "TaskSpec",
    "build",
]


def build(
    name: str,
    task: Task,
    *,
    classes: tuple[str, ...] | None,
    low: float | Sequence[float],
    high: float | Sequence[float],
    counts: Sequence[int] | None = None,
    known: Sequence[int] | None = None,
    paths: Sequence[Path] | None = None,
    groups: Sequence[int] | None = None,
) -> TaskSpec:
    """The task `name` over a label column.

    Args:
        classes: the column's class names by id, if it has classes; of a vector, the names of its components.
        low, high: range of the column's values in training; of a vector, of each component.
        counts: training rows of each class; for a yes or no, those that say yes.
        known: for a yes or no, the training rows that have an answer.
        paths: of each class, the nodes above it in the tree that the task asks for.
        groups: for each class of the task `group_of`, the class of this one that it belongs to, or -1.

    Raises:
        ConfigError: a task over a label without classes that needs them, or a loss that can not be built.
    """
    kind = task.kind
    if classes is None and kind in ("multiclass", "soft", "multilabel", "ordinal"):
        raise ConfigError(f"Task '{name}' is {kind}, but its label '{task.label}' has no classes.")
    classes = classes or ()
    heights = None if paths is None else ancestor_heights(paths)
    criterion = losses.build(
        task, outputs=1 if kind == "binary" else len(classes), counts=counts, known=known, heights=heights
    )
    match kind:
        case "multiclass":
            return Multiclass(name, task, criterion, classes, heights, groups)
        case "soft":
            return Soft(name, task, criterion, classes)
        case "binary":
            return Binary(name, task, criterion)
        case "multilabel":
            return Multilabel(name, task, criterion, classes)
        case "ordinal":
            return Ordinal(name, task, criterion, classes)
        case "circular":
            return Circular(name, task, criterion)
        case "regression":
            ends = [[end] if isinstance(end, int | float) else list(end) for end in (low, high)]
            return Regression(name, task, criterion, classes or None, *ends)
