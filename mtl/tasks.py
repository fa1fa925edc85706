"""What a task is: how wide its head, how its loss is counted, how its predictions are tallied.

A loss is a pair (numerator, denominator), so that means are exact over any split of a batch: the numerators and the
denominators are summed first and divided once. A missing label contributes nothing to either, and its zero stays
connected to the graph, so that a batch without any label of a task still has a backward.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from mtl import metrics
from mtl.config import Task
from mtl.errors import ConfigError


class TaskSpec(ABC):
    """One task.

    Attributes:
        name, column: its name, and the label column it reads.
        outputs: width of its head.
        weight: static weight of its loss.
        integer: labels are int64 with -1 for missing; else floating point with NaN for missing.
        primary: the metric that stands for the task, and whether larger is better.
    """

    outputs: int
    integer: bool
    primary: tuple[str, bool]

    def __init__(self, name: str, task: Task) -> None:
        self.name, self.column, self.weight = name, task.label, task.weight
        self.flip = task.flip

    def valid(self, label: Tensor) -> Tensor:
        """Where a label is present: bool [n]."""
        return label >= 0 if self.integer else ~label.isnan()

    def loss(self, output: Tensor, label: Tensor) -> Tensor:
        """Sum of the losses over valid labels: a scalar. `output` [n, outputs], `label` [n]."""
        valid = self.valid(label)
        filled = torch.where(valid, label, torch.zeros_like(label))
        return torch.where(valid, self.each(output, filled), output.new_zeros(())).sum()

    @abstractmethod
    def each(self, output: Tensor, label: Tensor) -> Tensor:
        """The loss of each sample, [n], of labels that are all present."""

    @abstractmethod
    def tally(self, output: Tensor, label: Tensor) -> dict[str, Tensor]:
        """Sums over the valid samples, from which `summary` computes the metrics; float64 or int64."""

    @abstractmethod
    def summary(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """The metrics, from sums over any number of batches and workers."""


@final
class Multiclass(TaskSpec):
    """One of C classes: cross-entropy."""

    integer = True
    primary = ("accuracy", True)

    def __init__(self, name: str, task: Task, classes: tuple[str, ...]) -> None:
        super().__init__(name, task)
        self.classes, self.outputs, self._smoothing = classes, len(classes), task.label_smoothing

    def each(self, output: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(output, label, reduction="none", label_smoothing=self._smoothing)

    def tally(self, output: Tensor, label: Tensor) -> dict[str, Tensor]:
        valid = self.valid(label)
        return {"confusion": metrics.confusion(label[valid], output[valid].argmax(1), self.outputs)}

    def summary(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        return metrics.multiclass(sums["confusion"])


@final
class Binary(TaskSpec):
    """Yes or no: binary cross-entropy on one logit."""

    integer = True
    outputs = 1
    primary = ("accuracy", True)

    def each(self, output: Tensor, label: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(output[:, 0], label.to(output.dtype), reduction="none")

    def tally(self, output: Tensor, label: Tensor) -> dict[str, Tensor]:
        valid = self.valid(label)
        return {"confusion": metrics.confusion(label[valid], (output[valid, 0] > 0).long(), 2)}

    def summary(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        return metrics.binary(sums["confusion"])


@final
class Circular(TaskSpec):
    """An angle in radians: the head points to (sin, cos), and half the squared distance to the true point is the loss.

    A pointer of any length has an angle, so predictions need no range; the loss has no jump where the circle closes.
    """

    integer = False
    outputs = 2
    primary = ("error_degrees", False)

    def each(self, output: Tensor, label: Tensor) -> Tensor:
        label = label.to(output.dtype)
        return 0.5 * (output - torch.stack([label.sin(), label.cos()], 1)).square().sum(1)

    def tally(self, output: Tensor, label: Tensor) -> dict[str, Tensor]:
        valid = self.valid(label)
        angle = torch.atan2(output[valid, 0], output[valid, 1]).double()
        return metrics.angular_sums(angle, label[valid].double())

    def summary(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        return metrics.angular(sums)


@final
class Regression(TaskSpec):
    """A number: squared error, in units of half the range seen in training so that losses of tasks are comparable."""

    integer = False
    outputs = 1
    primary = ("mae", False)

    def __init__(self, name: str, task: Task, low: float, high: float) -> None:
        super().__init__(name, task)
        self._middle, self._half = (low + high) / 2, (high - low) / 2 or 1.0

    def each(self, output: Tensor, label: Tensor) -> Tensor:
        return (output[:, 0] - (label.to(output.dtype) - self._middle) / self._half).square()

    def tally(self, output: Tensor, label: Tensor) -> dict[str, Tensor]:
        valid = self.valid(label)
        # Both less the middle, which no metric notices and which keeps the sums of squares small.
        return metrics.regression_sums(output[valid, 0].double() * self._half, label[valid].double() - self._middle)

    def summary(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        return metrics.regression(sums)


def build(name: str, task: Task, *, classes: tuple[str, ...] | None, low: float, high: float) -> TaskSpec:
    """The task `name` over a label column.

    Args:
        classes: the column's class names by id, if it has classes.
        low, high: range of the column's values in training.

    Raises:
        ConfigError: a multiclass task over a label without classes.
    """
    match task.kind:
        case "multiclass":
            if classes is None:
                raise ConfigError(f"Task '{name}' is multiclass, but its label '{task.label}' has no classes.")
            return Multiclass(name, task, classes)
        case "binary":
            return Binary(name, task)
        case "circular":
            return Circular(name, task)
        case "regression":
            return Regression(name, task, low, high)
