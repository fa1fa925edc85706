"""Losses by name. One family a file; `build` is the registry, mtl.task_config.LOSSES says which kind may have which."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from mtl.errors import ConfigError
from mtl.losses import classes, entries, numbers, ordinal, trees
from mtl.losses.base import Criterion, PerSample
from mtl.losses.own import own
from mtl.task_config import Task

__all__ = ["Criterion", "PerSample", "build"]


def build(
    task: Task,
    *,
    outputs: int,
    counts: Sequence[int] | None = None,
    known: Sequence[int] | None = None,
    heights: npt.NDArray[np.int64] | None = None,
) -> Criterion:
    """The loss of a task.

    Args:
        outputs: width of its head.
        counts: training rows of each class; for a yes or no, the rows that say yes.
        known: for a yes or no, the training rows that have an answer.
        heights: the tree of the classes; see mtl/tree.py.

    Raises:
        ConfigError: weights do not fit the classes, balanced ones need a data set, or the user's loss is not there.
    """
    name, options = task.loss_name, task.loss
    if ":" in name:
        return own(name, options.args)
    yes_or_no = task.kind in ("binary", "multilabel")
    class_weights = _checked(options.class_weights, "class_weights", (outputs,))
    pos_weight = _checked(options.pos_weight, "pos_weight", (1, outputs))
    if options.balanced:
        if not counts:
            raise ConfigError(
                "Balanced weights are counted in the data set.",
                got=f"no data set, for the task with label '{task.label}'",
                expected="a data set, or weights",
                do="write the data set, or give the weights themselves",
            )
        if yes_or_no:
            pos_weight = entries.balanced(counts, known or ())
        else:
            class_weights = classes.balanced(counts)
    gamma, alpha = _or(options.gamma, 2.0), options.alpha
    makers: dict[str, Callable[[], Criterion]] = {
        "cross_entropy": lambda: classes.cross_entropy(class_weights, task.label_smoothing),
        "focal": lambda: entries.focal(gamma, alpha) if yes_or_no else classes.focal(class_weights, gamma),
        "hierarchical": lambda: trees.hierarchical(_tree(heights), _or(alpha, 0.1)),
        "tree_labels": lambda: trees.tree_labels(_tree(heights), _or(options.beta, 10.0)),
        "kl": classes.kl,
        "bce": lambda: entries.bce(pos_weight),
        "asymmetric": lambda: entries.asymmetric(
            _or(options.gamma_positive, 1.0), _or(options.gamma_negative, 4.0), _or(options.margin, 0.05)
        ),
        "cumulative": ordinal.cumulative,
        "coral": ordinal.coral,
        "pointer": numbers.pointer,
        "l2": numbers.l2,
        "l1": numbers.l1,
        "huber": lambda: numbers.huber(_or(options.delta, 1.0)),
    }
    return makers[name]()


def _checked(weights: Sequence[float] | None, option: str, sizes: tuple[int, ...]) -> Sequence[float] | None:
    if weights is not None and (len(weights) not in sizes or min(weights) < 0):
        raise ConfigError(
            f"loss.{option} does not fit the classes.",
            got=f"{len(weights)} weights, the smallest {min(weights, default=0):g}",
            expected=f"{' or '.join(map(str, dict.fromkeys(sizes)))} weights, none below 0",
            do=f"mend loss.{option}, or leave it out and set loss.balanced",
        )
    return weights


def _tree(heights: npt.NDArray[np.int64] | None) -> npt.NDArray[np.int64]:
    assert heights is not None, "the configuration asks for a tree"
    return heights


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
