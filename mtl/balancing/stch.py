"""Smooth Tchebycheff scalarisation: Lin et al., "Smooth Tchebycheff Scalarization for Multi-Objective Optimization"
(ICML 2024): the loss is mu log sum_k exp(lambda_k (L_k - z_k) / mu), a smooth form of the largest loss.

lambda_k = 1 / K and z_k = 0: a preference among the tasks is the weight of a task, which is in its loss. Deviation: the
paper's experiments divide each loss by its mean over a warm-up; here none is divided, so losses should be of one scale.
"""

from typing import final

from torch import Tensor

from mtl.balancing.base import LossMethod, Stateless, TaskStats


@final
class STCH(Stateless, LossMethod):
    """Weights softmax(L / (K mu)) / K.

    Args:
        mu: smaller is closer to the largest loss alone.
    """

    def __init__(self, tasks: int, seed: int, *, mu: float = 0.1) -> None:
        super().__init__(tasks, seed)
        self._mu = mu

    def weigh(self, losses: Tensor, stats: TaskStats) -> Tensor:
        return (losses / (len(losses) * self._mu)).softmax(0) / len(losses)
