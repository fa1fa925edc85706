"""PCGrad: Yu et al., "Gradient Surgery for Multi-Task Learning" (NeurIPS 2020), algorithm 1: from each gradient what
conflicts with another is projected out, the others one by one in random order; the results are added.

Everything happens on coefficients: row i of C writes the i-th changed gradient as a combination of the given ones.
All rows are treated at once. The order is keyed by (seed, step).
"""

from typing import final

import torch
from torch import Tensor

from mtl.balancing.base import GramMethod, Stateless, TaskStats, generator


@final
class PCGrad(Stateless, GramMethod):
    """A sum of gradients without their pairwise conflicts."""

    def solve(self, gram: Tensor, stats: TaskStats) -> Tensor:
        changed = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        rows = torch.arange(len(gram), device=gram.device)
        for other in orders(len(gram), self.seed, stats.step).to(gram.device).T:
            product = (changed * gram[other]).sum(1)
            square = gram[other, other]
            conflict = (product < 0) & (square > 0) & (other != rows)
            taken = torch.where(conflict, product / square, torch.zeros_like(product))
            changed = changed.index_put((rows, other), -taken, accumulate=True)
        return changed.sum(0)


def orders(tasks: int, seed: int, step: int) -> Tensor:
    """In which order each task meets the others: a permutation in each row, int64 [tasks, tasks]."""
    return torch.rand(tasks, tasks, generator=generator(seed, step), dtype=torch.float64).argsort(1)
