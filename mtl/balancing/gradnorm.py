"""GradNorm: Chen et al., "GradNorm: Gradient Normalization for Adaptive Loss Balancing" (ICML 2018), algorithm 1.

Weights follow the gradient of sum_k |w_k |g_k| - m r_k^alpha| (equation 2), m the mean of w_k |g_k| and r_k the
relative inverse training rate: L_k over the task's first loss, over the mean of these. They are scaled to sum K after
each step.

Deviations: the norms are those of the whole shared part, not of its last layer; weights stay above 0.01.
"""

from typing import Any, final

import torch
from torch import Tensor

from mtl.balancing.base import Needs, TaskStats, present_gram, spread
from mtl.balancing.learned import Learned

_LEAST = 0.01


@final
class GradNorm:
    """Gradients of like length, longer for tasks that lag behind.

    Args:
        alpha: how much a task that lags behind gains.
        lr: learning rate of the weights.
    """

    needs = Needs.GRAM | Needs.HISTORY

    def __init__(self, tasks: int, seed: int, *, alpha: float = 1.5, lr: float = 0.025) -> None:
        self._tasks, self._alpha = tasks, alpha
        self._weights = Learned(tasks, start=1.0, lr=lr)
        self._first = torch.full((tasks,), torch.nan, dtype=torch.float64)

    def weights(self, stats: TaskStats) -> Tensor:
        """The weights, [K]."""
        present = stats.present()
        return spread(self._weights.at(present), present, self._tasks)

    def update(self, stats: TaskStats, post_losses: Tensor | None = None) -> None:
        """Move the weights."""
        assert stats.losses is not None, "HISTORY"
        present, losses = stats.present(), stats.losses
        first = self._first.to(losses.device)
        seen = spread(torch.ones_like(present), present, self._tasks) > 0
        self._first = first.where(~(first.isnan() & seen), losses)
        norms = present_gram(stats).diagonal().clamp(min=0).sqrt()
        lengths = self._weights.at(present) * norms
        rate = losses[present] / self._first[present].clamp(min=1e-12)
        wanted = lengths.mean() * (rate / rate.mean().clamp(min=1e-12)) ** self._alpha
        self._weights.step((lengths - wanted).sign() * norms, present)
        value = self._weights.value.clamp(min=_LEAST)
        self._weights.value = self._tasks * value / value.sum()

    def state_dict(self) -> dict[str, Any]:
        """The weights, and each task's first loss."""
        first = [None if value != value else value for value in self._first.tolist()]
        return {"weights": self._weights.state_dict(), "first": first}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self._weights.load_state_dict(state["weights"])
        first = [torch.nan if value is None else value for value in state["first"]]
        self._first = torch.tensor(first, dtype=torch.float64)
