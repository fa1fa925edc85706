"""FairGrad: Ban and Ji, "Fair Resource Allocation in Multi-Task Learning" (ICML 2024), equation 4: the weights w with
G w = w^(-1/alpha), element by element. alpha = 1 is Nash-MTL's equation; larger favours the task that gains least.

Deviation: Newton's method on the convex problem behind the equation, instead of nonlinear least squares. A gradient of
zero has the weight zero.
"""

from typing import final

from torch import Tensor

from mtl.balancing.base import GramMethod, Stateless, TaskStats
from mtl.balancing.solvers import directions, fair_point
from mtl.errors import ConfigError


@final
class FairGrad(Stateless, GramMethod):
    """An alpha-fair share of progress for each task; it descends on every task.

    Args:
        alpha: fairness; positive.
    """

    def __init__(self, tasks: int, seed: int, *, alpha: float = 1.0) -> None:
        super().__init__(tasks, seed)
        if alpha <= 0:
            raise ConfigError("FairGrad's alpha must be positive.", got=alpha, expected="alpha > 0")
        self._alpha = alpha

    def solve(self, gram: Tensor, stats: TaskStats) -> Tensor:
        cosines, norms = directions(gram)
        # In units u_k = w_k |g_k| the equation is C u = |g|^(p - 1) u^-p; the largest norm is taken out of it.
        power, longest = 1 / self._alpha, norms.amax()
        made = fair_point(cosines, power, (norms / longest) ** (power - 1)) / norms
        made = made * longest ** ((power - 1) / (power + 1))
        return made.where(gram.diagonal() > 0, made.new_zeros(()))
