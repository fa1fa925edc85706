"""Scale-invariant loss: sum_k log L_k, a baseline of Navon et al., "Multi-Task Learning as a Bargaining Game" (ICML
2022), section 5.

Deviation: a loss below 1e-12 counts as that, for the logarithm's sake.
"""

from typing import final

from torch import Tensor

from mtl.balancing.base import LossMethod, Stateless, TaskStats


@final
class SI(Stateless, LossMethod):
    """Weights 1 / L_k."""

    def weigh(self, losses: Tensor, stats: TaskStats) -> Tensor:
        return 1 / losses.clamp(min=1e-12)
