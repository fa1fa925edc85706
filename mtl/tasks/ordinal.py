"""One of K classes that have an order."""

from collections.abc import Mapping
from typing import final

from torch import Tensor

from mtl import metrics
from mtl.losses import Criterion
from mtl.losses.ordinal import above
from mtl.task_config import Task
from mtl.tasks.base import WithoutScores


@final
class Ordinal(WithoutScores):
    """One of K ordered classes: int64 ids, K - 1 numbers that become falling logits of "above class k".

    The prediction is the median: as many classes as more likely than not are passed.
    """

    integer = True

    def __init__(self, name: str, task: Task, criterion: Criterion, classes: tuple[str, ...]) -> None:
        super().__init__(name, task, criterion, len(classes) - 1)
        self.classes = classes

    def each(self, output: Tensor, label: Tensor) -> Tensor:
        return self.criterion.each(output, label)

    def tally(self, output: Tensor, label: Tensor) -> dict[str, Tensor]:
        valid = self.valid(label)
        predicted = (above(output[valid]) > 0).sum(1)
        return {"confusion": metrics.confusion(label[valid], predicted, len(self.classes))}

    def summary(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        return metrics.ordinal(sums["confusion"])
