"""Nash-MTL: Navon et al., "Multi-Task Learning as a Bargaining Game" (ICML 2022), claim 3.1 and algorithm 1: the
weights a with G a = 1 / a, element by element. The direction does not depend on the scale of any task's loss.

As in the authors' code G is first divided by its Frobenius norm, and the combined gradient is no longer than
`max_norm`. Deviation: Newton's method on the convex problem behind the equation, instead of a sequence of linearised
problems: the answer is exact, so nothing needs to be remembered. A gradient of zero has the weight zero.
"""

from typing import final

import torch
from torch import Tensor

from mtl.balancing.base import GramMethod, Stateless, TaskStats
from mtl.balancing.solvers import directions, fair_point


@final
class NashMTL(Stateless, GramMethod):
    """The bargain in which no task can gain a larger share than others lose; it descends on every task.

    Args:
        max_norm: largest length of the combined gradient; 0 for no limit.
    """

    def __init__(self, tasks: int, seed: int, *, max_norm: float = 1.0) -> None:
        super().__init__(tasks, seed)
        self._max_norm = max_norm

    def solve(self, gram: Tensor, stats: TaskStats) -> Tensor:
        cosines, norms = directions(gram)
        made = fair_point(cosines, 1.0, torch.ones_like(norms)) / norms
        made = made.where(gram.diagonal() > 0, made.new_zeros(())) * torch.linalg.matrix_norm(gram).sqrt()
        if not self._max_norm:
            return made
        length = (made @ gram @ made).clamp(min=0).sqrt()
        return made * (self._max_norm / length.clamp(min=1e-30)).clamp(max=1)
