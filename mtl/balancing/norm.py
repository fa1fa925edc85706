"""Norm balancing: every gradient is given the mean length of all. The gradient half of Lin et al., "Dual-Balancing for
Multi-Task Learning" (2023).

Deviations: the common length is the mean rather than the largest, there is no moving average, and the losses are
taken as they are.
"""

from typing import final

import torch
from torch import Tensor

from mtl.balancing.base import GramMethod, Stateless, TaskStats


@final
class Norm(Stateless, GramMethod):
    """Weights (mean length) / |g_k|; one where g_k is zero."""

    def solve(self, gram: Tensor, stats: TaskStats) -> Tensor:
        norms = gram.diagonal().clamp(min=0).sqrt()
        return torch.where(norms > 0, norms.mean() / norms, torch.ones_like(norms))
