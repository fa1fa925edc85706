"""Probabilities of C classes, such as the votes of several people or the predictions of a teacher."""

from collections.abc import Mapping
from typing import final

from torch import Tensor
from torch.nn import functional as F

from mtl.losses import Criterion
from mtl.metrics.ratio import count, ratio
from mtl.task_config import Task
from mtl.tasks.base import WithoutScores


@final
class Soft(WithoutScores):
    """A distribution over C classes: float32 labels [n, C], logits [n, C]."""

    integer = False

    def __init__(self, name: str, task: Task, criterion: Criterion, classes: tuple[str, ...]) -> None:
        super().__init__(name, task, criterion, len(classes), len(classes))
        self.classes = classes

    def each(self, output: Tensor, label: Tensor) -> Tensor:
        return self.criterion.each(output, label)

    def tally(self, output: Tensor, label: Tensor) -> dict[str, Tensor]:
        valid = self.valid(label)
        output, label = output[valid].double(), label[valid].double()
        agree = output.argmax(1) == label.argmax(1)
        divergence = F.kl_div(output.log_softmax(1), label, reduction="none").sum()
        return {"kl": divergence, "agree": agree.sum(), "n": count(agree)}

    def summary(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        return {name: ratio(sums[key], sums["n"]).item() for name, key in (("kl", "kl"), ("accuracy", "agree"))}
