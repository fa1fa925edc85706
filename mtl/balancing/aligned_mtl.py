"""Aligned-MTL: Senushkin et al., "Independent Component Alignment for Multi-Task Learning" (CVPR 2023), algorithm 1:
the principal components of the gradients are given one length, that of the shortest, and the means of the results are
followed.

Eigenvalues below the precision of the Gram matrix count as zero.
"""

from typing import final

import torch
from torch import Tensor

from mtl.balancing.base import GramMethod, Stateless, TaskStats


@final
class AlignedMTL(Stateless, GramMethod):
    """A mean of gradients that are made orthogonal and equally long, as near to the given ones as possible."""

    def solve(self, gram: Tensor, stats: TaskStats) -> Tensor:
        assert stats.gram is not None
        values, vectors = torch.linalg.eigh(gram)
        tolerance = values[-1] * len(gram) * torch.finfo(stats.gram.dtype).eps
        kept = values > tolerance
        least = torch.where(kept, values, torch.full_like(values, torch.inf)).amin()
        shrink = torch.where(kept, (least / values).sqrt(), torch.zeros_like(values))
        even = torch.full_like(gram[0], 1 / len(gram))
        return torch.where(kept.any(), vectors @ (shrink * (vectors.T @ even)), even)
