"""Tasks of every kind with random outputs and labels."""

from typing import Any

import torch
from torch import Tensor

from mtl.config import Task
from mtl.task_config import WITH_CLASSES
from mtl.tasks import TaskSpec, build

CLASSES = ("red", "green", "blue", "grey")


def spec(task: Task, **known: Any) -> TaskSpec:
    """`task` over a label of four classes, or numbers in [-2, 6]."""
    classes = CLASSES if task.kind in WITH_CLASSES else None
    return build(task.kind, task, **{"classes": classes, "low": -2.0, "high": 6.0, **known})


def labelled(task: Task, n: int, seed: int = 0, **known: Any) -> tuple[TaskSpec, Tensor, Tensor]:
    """The task with float64 outputs, which require a gradient, and labels that are all there."""
    made = spec(task, **known)
    generator = torch.Generator().manual_seed(seed)
    output = torch.randn(n, made.outputs, generator=generator, dtype=torch.float64).requires_grad_()
    shape = (n,) if made.width is None else (n, made.width)
    if task.kind == "soft":
        return made, output, torch.rand(shape, generator=generator, dtype=torch.float64).log().softmax(1)
    if made.integer:
        top = len(CLASSES) if task.kind in ("multiclass", "ordinal") else 2
        return made, output, torch.randint(top, shape, generator=generator)
    return made, output, torch.rand(shape, generator=generator, dtype=torch.float64) * 6


def hidden(made: TaskSpec, label: Tensor, keep: Tensor) -> Tensor:
    """`label` without what `keep`, bool of its shape or [n], does not keep."""
    keep = keep if keep.ndim == label.ndim else keep[:, None]
    return torch.where(keep, label, -1 if made.integer else torch.nan)
