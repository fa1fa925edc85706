"""Geometric loss strategy: Chennupati et al., "MultiNet++: Multi-Stream Feature Aggregation and Geometric Loss
Strategy for Multi-Task Learning" (CVPR workshops 2019): the loss is the geometric mean of the losses.

Its gradient is sum_k (mean / (K L_k)) dL_k. Deviation: a loss below 1e-12 counts as that, for the logarithm's sake.
"""

from typing import final

from torch import Tensor

from mtl.balancing.base import LossMethod, Stateless, TaskStats


@final
class GLS(Stateless, LossMethod):
    """Weights (geometric mean of the losses) / (K L_k)."""

    def weigh(self, losses: Tensor, stats: TaskStats) -> Tensor:
        losses = losses.clamp(min=1e-12)
        return losses.log().mean().exp() / (len(losses) * losses)
