"""Yes or no."""

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from mtl import metrics
from mtl.losses import Criterion
from mtl.task_config import Task
from mtl.tasks.base import TaskSpec


@final
class Binary(TaskSpec):
    """Yes or no: int64 labels [n], one logit."""

    integer = True

    def __init__(self, name: str, task: Task, criterion: Criterion) -> None:
        super().__init__(name, task, criterion, 1)

    def each(self, output: Tensor, label: Tensor) -> Tensor:
        return self.criterion.each(output if self.criterion.whole else output[:, 0], label)

    def tally(self, output: Tensor, label: Tensor) -> dict[str, Tensor]:
        valid = self.valid(label)
        logit, label = output[valid, 0], label[valid]
        sums = {"confusion": metrics.confusion(label, (logit > 0).long(), 2)}
        if "ece" in self.further:
            sums |= metrics.calibration_sums(logit.double().sigmoid(), label == 1)
        return sums

    def summary(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        found = metrics.binary(sums["confusion"])
        return found | ({"ece": metrics.calibration_error(sums)} if "ece" in self.further else {})

    def scores(self, output: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """The logit, and the answer."""
        return output, label[:, None].to(torch.int8)
