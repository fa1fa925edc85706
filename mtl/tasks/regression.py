"""A number, or a vector of them."""

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from mtl import metrics
from mtl.losses import Criterion
from mtl.losses.base import Constant
from mtl.task_config import EACH, Task
from mtl.tasks.base import WithoutScores


@final
class Regression(WithoutScores):
    """A number [n] or D of them [n, D], as many outputs, in units of half the range seen in training.

    Those units make the losses of tasks, and of components, comparable. The mean loss is over the components that are
    known. A user's loss gets the label in the same units as the output.

    Args:
        components: names, None for a single number.
        low, high: range in training of each component.
    """

    integer = False

    def __init__(
        self,
        name: str,
        task: Task,
        criterion: Criterion,
        components: tuple[str, ...] | None,
        low: Sequence[float],
        high: Sequence[float],
    ) -> None:
        super().__init__(name, task, criterion, len(low), None if components is None else len(components))
        self._components = components or (task.label,)
        # Of a single number the constants are scalars, so that labels [n] stay [n].
        ends = torch.tensor([low, high], dtype=torch.float64)
        ends = ends[:, 0] if components is None else ends
        half = (ends[1] - ends[0]) / 2
        self._middle = Constant((ends[0] + ends[1]) / 2)
        self._half = Constant(torch.where(half > 0, half, 1.0))

    def each(self, output: Tensor, label: Tensor) -> Tensor:
        middle, half = (constant.on(output.device, output.dtype) for constant in (self._middle, self._half))
        scaled = (label.to(output.dtype) - middle) / half
        return self.criterion.each(output if self.width or self.criterion.whole else output[:, 0], scaled)

    def tally(self, output: Tensor, label: Tensor) -> dict[str, Tensor]:
        predicted = (output if self.width else output[:, 0]).double()
        # Both less the middle, which no metric notices and which keeps the sums of squares small.
        middle, half = (constant.on(output.device) for constant in (self._middle, self._half))
        return metrics.regression_sums(predicted * half, label.double() - middle)

    def summary(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        each = metrics.regression_each(sums, self._components) if EACH in self.further else {}
        return metrics.regression(sums) | each
