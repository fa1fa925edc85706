"""The sections of the configuration that say in which order rows come, and how often in an epoch."""

from collections.abc import Iterator, Mapping

from mtl.schema import Section, identity
from mtl.task_config import Task, TaskKind

COUNTED: tuple[TaskKind, ...] = ("multiclass", "binary", "multilabel", "ordinal")
"""Kinds of which a row has classes, or has them not."""


class Order(Section):
    """The order of samples: see docs/data.md."""

    lanes: int = identity(16, "fixed virtual readers; bounds the number of workers", ge=1)
    block_row_groups: int | None = identity(
        8, "row groups shuffled together in a lane; None makes a lane's whole epoch one block (small data sets)", ge=1
    )
    keep_tail: bool = identity(False, "train on the last, incomplete global batch too")


class Rebalance(Section):
    """Repeat-factor sampling of the training split: see docs/data.md."""

    task: str | None = identity(None, "the task by whose classes rows are repeated; None takes each row once an epoch")
    power: float = identity(
        0.5, "a class comes (most frequent / its rows) ^ power times: 0.5 is LVIS's, 1 makes classes equal", gt=0, le=1
    )
    threshold: float | None = identity(
        None, "share of the labelled rows below which a class is rare; None takes the most frequent one's", gt=0, le=1
    )
    cap: int = identity(10, "most times that a row comes in an epoch", ge=2, le=255)


def impossible_rebalancing(rebalance: Rebalance, tasks: Mapping[str, Task]) -> Iterator[str]:
    """What is wrong with rebalancing by one of these tasks: it is done already, or can not be done."""
    name = rebalance.task
    if name is None:
        if rebalance != Rebalance():
            yield "rebalance says how, but not by which task's classes: set rebalance.task too"
        return
    task = tasks.get(name)
    if task is None:
        yield f"rebalance.task ({name}) must be one of {', '.join(tasks)}"
    elif task.kind not in COUNTED:
        yield f"rebalance.task ({name}) is of kind {task.kind}; only {', '.join(COUNTED)} have classes to count"
    elif task.loss.balanced:
        yield f"rebalance.task and tasks.{name}.loss.balanced make up for the same rare classes twice: leave one out"
