"""UPGrad: Quinton and Rey, "Jacobian Descent for Multi-Objective Optimization" (2024): each gradient is
projected (equation 3) onto the cone of directions that conflict with none, and the projections are averaged.

By proposition 1 there, the projection of sum_k u_k g_k is sum_k v_k g_k with v >= u of least length. The K problems
are solved at once, for unit gradients: a projection scales with what is projected. The weights of tasks that do not
conflict are 1 / K.
"""

from typing import final

import torch
from torch import Tensor

from mtl.balancing.base import GramMethod, Stateless, TaskStats
from mtl.balancing.solvers import directions, interior_point


@final
class UPGrad(Stateless, GramMethod):
    """The mean of the gradients, each with what conflicts taken out; it descends on every task."""

    def solve(self, gram: Tensor, stats: TaskStats) -> Tensor:
        cosines, norms = directions(gram)
        each = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        added = interior_point(lambda x: ((x + each) @ cosines, cosines), torch.ones_like(each))
        return norms @ (each + added) / norms / len(gram)
