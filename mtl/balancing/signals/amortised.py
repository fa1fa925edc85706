"""The exact Gram matrix every n steps, and its weights in between for the price of a plain step."""

from typing import final

from torch import Tensor

from mtl.balancing.base import TaskStats
from mtl.balancing.signals.base import Signal


@final
class Amortised:
    """One signal at every n-th step of the run, another at the others.

    Args:
        every: n.
        measured: asks the balancer.
        held: applies the last known weights.
    """

    def __init__(self, every: int, measured: Signal, held: Signal) -> None:
        self._every, self._measured, self._held = every, measured, held

    def begin(self, stats: TaskStats) -> None:
        """Choose."""
        self._now = self._held if stats.step % self._every else self._measured
        self._now.begin(stats)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Outputs by task."""
        return self._now.forward(images)

    def backward(self, sums: Tensor, last: bool) -> None:
        """Take in a micro-batch."""
        self._now.backward(sums, last)

    def end(self) -> TaskStats:
        """The step's statistics; no Gram matrix in between."""
        return self._now.end()
