"""What a loss is to a task: the losses of single samples, and the weight of each in the mean."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, final

import torch
from torch import Tensor

PerSample: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Of outputs and labels that are all present to losses: [n], or [n, E] where a label has E entries."""


@final
@dataclass(frozen=True)
class Criterion:
    """A loss.

    Attributes:
        each: the losses, already times their weight.
        weight: weights of labels [n], float64; None weighs all alike. Their sum is what the sum of losses is divided
            by, as torch does for a weighted cross-entropy.
        whole: `each` gives one loss a sample even where a label has entries, some of which may be unknown.
    """

    each: PerSample
    weight: Callable[[Tensor], Tensor] | None = None
    whole: bool = False


@final
class Constant:
    """A tensor that goes where it is needed: one copy for each device and type."""

    def __init__(self, value: Tensor) -> None:
        self._value = value
        self._copies: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def on(self, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
        """The tensor on `device`, in its own type unless another is given."""
        key = device, dtype or self._value.dtype
        if key not in self._copies:
            self._copies[key] = self._value.to(*key)
        return self._copies[key]
