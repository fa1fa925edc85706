"""An angle."""

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from mtl import metrics
from mtl.losses import Criterion
from mtl.task_config import Task
from mtl.tasks.base import WithoutScores


@final
class Circular(WithoutScores):
    """An angle in radians: the head points to (sin, cos), and half the squared distance to the true point is the loss.

    A pointer of any length has an angle, so predictions need no range; the loss has no jump where the circle closes.
    """

    integer = False

    def __init__(self, name: str, task: Task, criterion: Criterion) -> None:
        super().__init__(name, task, criterion, 2)

    def each(self, output: Tensor, label: Tensor) -> Tensor:
        return self.criterion.each(output, label)

    def tally(self, output: Tensor, label: Tensor) -> dict[str, Tensor]:
        valid = self.valid(label)
        angle = torch.atan2(output[valid, 0], output[valid, 1]).double()
        return metrics.angular_sums(angle, label[valid].double())

    def summary(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        return metrics.angular(sums)
