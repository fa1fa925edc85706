"""IMTL-G: Liu et al., "Towards Impartial Multi-task Learning" (ICLR 2021), section 3.1: the combination with weights
of sum one that has the same projection on every task's direction.

In units u_k = w_k |g_k| that is C u = (1, ..., 1) up to scale, C the matrix of cosines, of which the pseudo-inverse
serves where directions are dependent. Weights may be negative. Where no combination has a sum, as for two opposed
gradients, all are zero.
"""

from typing import final

import torch
from torch import Tensor

from mtl.balancing.base import GramMethod, Stateless, TaskStats

_RANK = 1e-6  # eigenvalues of C below this are fp32 noise
_SOUND = 1e-5  # what is left of a sum below this share of its terms is rounding, and would differ with the tasks' order


@final
class IMTLG(Stateless, GramMethod):
    """Every task's gradient sees the same progress."""

    def solve(self, gram: Tensor, stats: TaskStats) -> Tensor:
        norms = gram.diagonal().clamp(min=0).sqrt()
        there = norms > 0
        inverse = torch.where(there, 1 / norms, torch.zeros_like(norms))
        values, vectors = torch.linalg.eigh(gram * inverse[:, None] * inverse)
        wanted = vectors.T @ there.to(gram.dtype)
        reached = (values > _RANK) & (wanted.abs() > _SOUND)
        wanted = torch.where(reached, wanted / values, torch.zeros_like(wanted))
        made = (vectors @ wanted) * inverse
        total = made.sum()
        sound = total.abs() > _SOUND * made.abs().sum()
        return torch.where(sound, made / total, torch.zeros_like(made))
