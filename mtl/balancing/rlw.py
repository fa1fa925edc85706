"""Random loss weighting: Lin, Ye and Zhang, "Reasonable Effectiveness of Random Weighting" (TMLR 2022).

Normal draws under a softmax (algorithm 2): positive weights that sum to one. A litmus test: a method that does not
beat it has not shown anything.
"""

from typing import final

import torch
from torch import Tensor

from mtl.balancing.base import Needs, Stateless, TaskStats, generator, spread


@final
class RLW(Stateless):
    """Other weights at every step, keyed by (seed, step)."""

    needs = Needs.NOTHING

    def __init__(self, tasks: int, seed: int) -> None:
        self._tasks, self._seed = tasks, seed

    def weights(self, stats: TaskStats) -> Tensor:
        """The weights, [K]."""
        draws = torch.randn(self._tasks, generator=generator(self._seed, stats.step), dtype=torch.float64)
        present = stats.present()
        return spread(draws.to(present.device)[present].softmax(0), present, self._tasks)
