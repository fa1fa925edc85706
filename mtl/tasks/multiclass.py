"""One of C classes."""

from collections.abc import Mapping, Sequence
from typing import final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mtl import metrics
from mtl.losses import Criterion
from mtl.task_config import EACH, Task
from mtl.tasks.base import TaskSpec


@final
class Multiclass(TaskSpec):
    """One of C classes: int64 ids, logits [n, C].

    Args:
        heights: the tree of the classes, int64 [C, C], if there is one; see mtl/tree.py.
        groups: for each class of the task `group_of`, the class of this one that it belongs to; -1 if none is known.
    """

    integer = True

    def __init__(
        self,
        name: str,
        task: Task,
        criterion: Criterion,
        classes: tuple[str, ...],
        heights: npt.NDArray[np.int64] | None,
        groups: Sequence[int] | None,
    ) -> None:
        super().__init__(name, task, criterion, len(classes))
        self.classes, self.group_of = classes, task.group_of
        self.groups = None if groups is None else torch.tensor(groups)
        self._heights = None if heights is None else torch.from_numpy(heights)

    def each(self, output: Tensor, label: Tensor) -> Tensor:
        return self.criterion.each(output, label)

    def tally(self, output: Tensor, label: Tensor) -> dict[str, Tensor]:
        valid = self.valid(label)
        output, label = output[valid], label[valid]
        predicted = output.argmax(1)
        sums = {"confusion": metrics.confusion(label, predicted, self.outputs)}
        if "top5" in self.further:
            sums |= metrics.top(output, label, 5)
        if "ece" in self.further:
            sums |= metrics.calibration_sums(output.double().softmax(1).amax(1), predicted == label)
        return sums

    def summary(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        counts = sums["confusion"]
        found = metrics.multiclass(counts)
        if "top5" in self.further:
            found["top5"] = (sums["top5"] / sums["top5_n"].clamp(min=1)).item()
        if "ece" in self.further:
            found["ece"] = metrics.calibration_error(sums)
        if self._heights is not None:
            found["mistake_severity"] = metrics.severity(counts, self._heights)
        if EACH in self.further:
            found |= metrics.multiclass_each(counts, self.classes)
        return found

    def scores(self, output: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities, each class against the rest."""
        own = label[:, None] == torch.arange(self.outputs, device=label.device)
        return output.log_softmax(1), torch.where(self.valid(label)[:, None], own.to(torch.int8), -1)
