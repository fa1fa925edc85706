"""MGDA: Désidéri, "Multiple-gradient descent algorithm" (2012), in the form of Sener and Koltun, "Multi-Task Learning
as Multi-Objective Optimization" (NeurIPS 2018), equation 3: the shortest vector in the convex hull of the gradients.

Deviation: an interior point instead of Frank-Wolfe (algorithm 2 there), which needs hundreds of iterations where two
gradients are nearly parallel. The weights sum to one.
"""

from typing import final

import torch
from torch import Tensor

from mtl.balancing.base import GramMethod, Stateless, TaskStats
from mtl.balancing.solvers import directions, interior_point


@final
class MGDA(Stateless, GramMethod):
    """Weights on the simplex with the shortest combination; it descends on every task, or is zero."""

    def solve(self, gram: Tensor, stats: TaskStats) -> Tensor:
        cosines, norms = directions(gram)
        # Any x >= 0 that minimises x' G x / 2 - sum_k x_k points to the answer; x_k |g_k| is of one scale.
        pull = norms.amin() / norms
        x = interior_point(lambda x: (cosines @ x - pull, cosines), torch.ones_like(pull))
        return x * pull / (x * pull).sum()
