"""The part that all kinds of task have in common."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from mtl.losses import Criterion
from mtl.task_config import METRICS, Task


class TaskSpec(ABC):
    """One task.

    Attributes:
        name, columns: its name, and the label columns it reads; several ones are the entries of its label.
        outputs: width of its head.
        width: entries of a label, which is then [n, width]; None where a label is a single value, [n].
        weight: static weight of its loss.
        integer: labels are int64 with -1 for missing; else floating point with NaN for missing.
        primary: the metric that stands for the task, and whether larger is better.
        further: metrics beside those of its kind that are asked for; `each` lists those of classes or components.
    """

    integer: bool

    def __init__(self, name: str, task: Task, criterion: Criterion, outputs: int, width: int | None = None) -> None:
        self.name, self.columns, self.weight = name, task.columns, task.weight
        self.flip, self.further = task.flip, task.metrics
        self.outputs, self.width = outputs, width
        self.primary = next(iter(METRICS[task.kind].items()))
        self.criterion = criterion

    def known(self, label: Tensor) -> Tensor:
        """Which entries of a label are present: bool, of the label's shape."""
        return label >= 0 if self.integer else ~label.isnan()

    def valid(self, label: Tensor) -> Tensor:
        """Where a label is present, or at least one entry of it: bool [n]."""
        return self._any(self.known(label))

    def weight_of(self, label: Tensor) -> Tensor:
        """What each sample adds to the denominator of the mean loss: float64 [n].

        0 without a label; 1 with one, or its class's weight; of a label with entries the share that is known.
        """
        known = self.known(label)
        if known.ndim == 2 and not self.criterion.whole:
            return known.double().mean(1)
        valid = self._any(known)
        if self.criterion.weight is None:
            return valid.double()
        return torch.where(valid, self.criterion.weight(torch.where(known, label, 0)), 0.0)

    def loss(self, output: Tensor, label: Tensor, share: Tensor | None = None) -> Tensor:
        """Sum of the losses over present labels: a scalar, to be divided by the sum of `weight_of`.

        Args:
            output: [n, outputs].
            label: [n] or [n, width].
            share: [n], of each sample that counts, where it is mixed with others; None for all of it.
        """
        known = self.known(label)
        losses = self.each(output, torch.where(known, label, 0))
        if share is not None:
            losses = losses * share.to(losses.dtype).view(-1, *[1] * (losses.ndim - 1))
        if losses.ndim == 1:
            return torch.where(self._any(known), losses, output.new_zeros(())).sum()
        return torch.where(known, losses, output.new_zeros(())).sum() / losses.shape[1]

    @staticmethod
    def _any(known: Tensor) -> Tensor:
        return known if known.ndim == 1 else known.any(1)

    @abstractmethod
    def each(self, output: Tensor, label: Tensor) -> Tensor:
        """The loss of each sample, [n], or of each entry, [n, width], of labels that are all present."""

    @abstractmethod
    def tally(self, output: Tensor, label: Tensor) -> dict[str, Tensor]:
        """Sums over the valid samples, from which `summary` computes the metrics; float64 or int64."""

    @abstractmethod
    def summary(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """The metrics, from sums over any number of batches and workers."""

    @abstractmethod
    def scores(self, output: Tensor, label: Tensor) -> tuple[Tensor, Tensor] | None:
        """What orders the samples for each class, [n, C], and whether they have it: int8 [n, C], -1 for unknown.

        None for a kind without such metrics.
        """


class WithoutScores(TaskSpec):
    """A kind whose metrics all come from sums."""

    def scores(self, output: Tensor, label: Tensor) -> None:
        """None."""
