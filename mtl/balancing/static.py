"""Fixed weights: the baseline that is hard to beat once they are tuned (Kurin et al. 2022, Xin et al. 2022)."""

from typing import final

import torch

from mtl.balancing.base import Needs, Stateless, TaskStats


@final
class Static(Stateless):
    """Ones, at every step: a task's own weight is already in its loss."""

    needs = Needs.NOTHING

    def __init__(self, tasks: int, seed: int) -> None:
        self._ones = torch.ones(tasks, dtype=torch.float64)

    def weights(self, stats: TaskStats) -> torch.Tensor:
        """Ones, [K]."""
        return self._ones
