"""IMTL-G: Liu et al., "Towards Impartial Multi-task Learning" (ICLR 2021), section 3.1: the combination with weights
of sum one that has the same projection on every task's direction.

In units u_k = w_k |g_k| that is C u = (1, ..., 1) up to scale, C the matrix of cosines, of which the pseudo-inverse
serves where directions are dependent. Weights may be negative. Where no combination has a sum, all are zero.
"""

from typing import final

import torch
from torch import Tensor

from mtl.balancing.base import GramMethod, Stateless, TaskStats

_RANK = 1e-6  # eigenvalues of C below this are fp32 noise


@final
class IMTLG(Stateless, GramMethod):
    """Every task's gradient sees the same progress."""

    def solve(self, gram: Tensor, stats: TaskStats) -> Tensor:
        norms = gram.diagonal().clamp(min=0).sqrt()
        there = norms > 0
        inverse = torch.where(there, 1 / norms, torch.zeros_like(norms))
        values, vectors = torch.linalg.eigh(gram * inverse[:, None] * inverse)
        wanted = vectors.T @ there.to(gram.dtype)
        wanted = torch.where(values > _RANK, wanted / values, torch.zeros_like(wanted))
        made = (vectors @ wanted) * inverse
        total = made.sum()
        # Relative to what cancels in the sum.
        sound = total.abs() > 1e-9 * made.abs().sum()
        return torch.where(sound, made / total, torch.zeros_like(made))
