"""GradVac: Wang et al., "Gradient Vaccine" (ICLR 2021), algorithm 1: as PCGrad, but each pair of gradients is bent to
the cosine that the pair has had on average, where it has less.

The averages move within a step as the algorithm has it, each row of them by itself. The order is keyed by (seed, step).
"""

from typing import Any, final

import torch
from torch import Tensor

from mtl.balancing.base import GramMethod, TaskStats, present_gram
from mtl.balancing.pcgrad import orders

_EPS = 1e-8  # in units of the mean norm
_TINIEST = 1e-30


@final
class GradVac(GramMethod):
    """A sum of gradients, each pair at least as aligned as usual.

    Args:
        beta: share of a new cosine in its average.
    """

    def __init__(self, tasks: int, seed: int, *, beta: float = 0.01) -> None:
        super().__init__(tasks, seed)
        self._beta = beta
        self._usual = torch.zeros(tasks, tasks, dtype=torch.float64)

    def solve(self, gram: Tensor, stats: TaskStats) -> Tensor:
        return self._bent(gram, stats)[0]

    def _bent(self, gram: Tensor, stats: TaskStats) -> tuple[Tensor, Tensor]:
        """The weights, and the averages after this step among the present tasks [P, P]."""
        present = stats.present()
        self._usual = self._usual.to(gram.device)
        usual = self._usual[present[:, None], present]
        changed = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        rows = torch.arange(len(gram), device=gram.device)
        norms = gram.diagonal().clamp(min=0).sqrt()
        tiny = _EPS * norms.mean()
        for other in orders(len(gram), self.seed, stats.step).to(gram.device).T:
            products = changed @ gram
            own = (products * changed).sum(1).clamp(min=0).sqrt()
            cosine = products[rows, other] / (own * norms[other] + tiny * norms.mean() + _TINIEST)
            wanted = usual[rows, other]
            sine, wanted_sine = (1 - cosine.square()).clamp(min=0).sqrt(), (1 - wanted.square()).clamp(min=0).sqrt()
            added = own * (wanted * sine - cosine * wanted_sine) / (norms[other] * wanted_sine + tiny + _TINIEST)
            # Of an absent gradient there is nothing to add, whatever its cosine.
            bend = (cosine < wanted) & (other != rows) & (norms[other] > 0)
            changed = changed.index_put((rows, other), added.where(bend, added.new_zeros(())), accumulate=True)
            moved = torch.lerp(wanted, cosine, self._beta).where(other != rows, wanted)
            usual = usual.index_put((rows, other), moved)
        return changed.sum(0), usual

    def update(self, stats: TaskStats, post_losses: Tensor | None = None) -> None:
        """Move the averages."""
        present = stats.present()
        if len(present) > 1:
            usual = self._bent(present_gram(stats), stats)[1]
            self._usual = self._usual.index_put((present[:, None], present), usual)

    def state_dict(self) -> dict[str, Any]:
        """The average cosines."""
        return {"usual": self._usual.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self._usual = torch.tensor(state["usual"], dtype=torch.float64)
