"""CAGrad: Liu et al., "Conflict-Averse Gradient Descent for Multi-task Learning" (NeurIPS 2021), algorithm 1.

The direction within c |g_0| of the mean gradient g_0 that helps the worst-off task most: g_0 + c |g_0| / |g_w| g_w,
where w on the simplex minimises g_w . g_0 + c |g_0| |g_w|, the dual problem. Deviation: the authors
rescale the result in some experiments; here it is as the algorithm states.
"""

from typing import final

from torch import Tensor

from mtl.balancing.base import GramMethod, Stateless, TaskStats
from mtl.balancing.solvers import directions, interior_point

_SMOOTH = 1e-9  # added to |g_w|^2, in units of cosines, as its root has a kink at zero
_ITERATIONS = 30


@final
class CAGrad(Stateless, GramMethod):
    """The mean gradient, bent towards the task that it helps least.

    Args:
        c: how far it may bend, as a share of its length; 0 is the mean, and it tends to MGDA as c grows.
    """

    def __init__(self, tasks: int, seed: int, *, c: float = 0.4) -> None:
        super().__init__(tasks, seed)
        self._c = c

    def solve(self, gram: Tensor, stats: TaskStats) -> Tensor:
        cosines, norms = directions(gram)
        even = norms / norms.amax() / len(gram)
        mean = (even @ cosines @ even).sqrt()
        towards = cosines @ even / mean

        # Smoother at first, so that Newton's method finds a kink; one value an iteration.
        smooth = iter([max(_SMOOTH, 10 ** (-number / 3)) for number in range(_ITERATIONS)])

        def curve(x: Tensor) -> tuple[Tensor, Tensor]:
            pull = cosines @ x
            length = (x @ pull + next(smooth)).sqrt()
            along = pull / length
            return towards + self._c * along, self._c / length * (cosines - along[:, None] * along)

        # In units x_k = w_k |g_k| the weights sum to one on a plane; only the direction of the answer counts.
        normal = norms.amin() / norms
        x = interior_point(curve, (1 / normal.sum()).expand_as(normal), normal, _ITERATIONS)
        radius = self._c * gram.mean().clamp(min=0).sqrt()
        return 1 / len(gram) + radius * x / (norms * (x @ cosines @ x + _SMOOTH).sqrt())
