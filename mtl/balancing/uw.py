"""Uncertainty weighting: Kendall, Gal and Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses" (CVPR 2018).

The loss is sum_k c_k exp(-s_k) L_k + s_k / 2 with s_k the logarithm of a variance, c_k = 1/2 for a squared error
(equation 7) and 1 for a classification (equation 10).

Deviations: s_k is learned by an Adam of the balancer's own, from the global loss and the closed-form gradient, rather
than by the model's optimizer.
"""

from typing import Any, final

import torch
from torch import Tensor

from mtl.balancing.base import Needs, TaskStats, spread
from mtl.balancing.learned import Learned

_SQUARED = ("regression", "circular")


@final
class UW:
    """Weights c_k exp(-s_k).

    Args:
        lr: learning rate of the log variances.
    """

    needs = Needs.HISTORY

    def __init__(self, tasks: int, seed: int, *, lr: float = 0.025) -> None:
        self._tasks = tasks
        self._log_variance = Learned(tasks, start=0.0, lr=lr)

    def weights(self, stats: TaskStats) -> Tensor:
        """The weights, [K]."""
        present = stats.present()
        return spread(self._weights(stats, present), present, self._tasks)

    def _weights(self, stats: TaskStats, present: Tensor) -> Tensor:
        if self._tasks == 1:
            return torch.ones(len(present), dtype=torch.float64, device=present.device)
        kinds = [0.5 if kind in _SQUARED else 1.0 for kind in stats.kinds or [""] * self._tasks]
        factor = torch.tensor(kinds, dtype=torch.float64).to(present.device)
        return factor[present] * (-self._log_variance.at(present)).exp()

    def update(self, stats: TaskStats, post_losses: Tensor | None = None) -> None:
        """Move the log variances."""
        assert stats.losses is not None, "HISTORY"
        present = stats.present()
        self._log_variance.step(0.5 - self._weights(stats, present) * stats.losses[present], present)

    def state_dict(self) -> dict[str, Any]:
        """The log variances."""
        return self._log_variance.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self._log_variance.load_state_dict(state)
