"""Any of C classes at once, each present, absent or unknown."""

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from mtl import metrics
from mtl.losses import Criterion
from mtl.task_config import EACH, Task
from mtl.tasks.base import TaskSpec


@final
class Multilabel(TaskSpec):
    """Any of C classes: int64 labels [n, C] of 1, 0 and -1 (unknown), a logit for each.

    The mean loss is over the entries that are known, wherever they are.
    """

    integer = True

    def __init__(self, name: str, task: Task, criterion: Criterion, classes: tuple[str, ...]) -> None:
        super().__init__(name, task, criterion, len(classes), len(classes))
        self.classes = classes

    def each(self, output: Tensor, label: Tensor) -> Tensor:
        return self.criterion.each(output, label)

    def tally(self, output: Tensor, label: Tensor) -> dict[str, Tensor]:
        sums = metrics.entry_sums(output > 0, label)
        if "ece" in self.further:
            known = self.known(label)
            sums |= metrics.calibration_sums(output[known].double().sigmoid(), label[known] == 1)
        return sums

    def summary(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        found = metrics.multilabel(sums)
        if "ece" in self.further:
            found["ece"] = metrics.calibration_error(sums)
        return found | (metrics.multilabel_each(sums, self.classes) if EACH in self.further else {})

    def scores(self, output: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """The logits, and the answers."""
        return output, label.to(torch.int8)
