"""IMTL-L: Liu et al., "Towards Impartial Multi-task Learning" (ICLR 2021), section 3.2.

The loss is sum_k exp(s_k) L_k - s_k: learned scales that bring every scaled loss to one.

Deviations: s_k is learned by an Adam of the balancer's own, from the global loss and the closed-form gradient, rather
than by the model's optimizer.
"""

from typing import Any, final

import torch
from torch import Tensor

from mtl.balancing.base import Needs, TaskStats, spread
from mtl.balancing.learned import Learned


@final
class IMTLL:
    """Weights exp(s_k).

    Args:
        lr: learning rate of the scales' logarithms.
    """

    needs = Needs.HISTORY

    def __init__(self, tasks: int, seed: int, *, lr: float = 0.025) -> None:
        self._tasks = tasks
        self._log_scale = Learned(tasks, start=0.0, lr=lr)

    def weights(self, stats: TaskStats) -> Tensor:
        """The weights, [K]."""
        present = stats.present()
        return spread(self._weights(present), present, self._tasks)

    def _weights(self, present: Tensor) -> Tensor:
        scale = self._log_scale.at(present).exp()
        return torch.ones_like(scale) if self._tasks == 1 else scale

    def update(self, stats: TaskStats, post_losses: Tensor | None = None) -> None:
        """Move the scales."""
        assert stats.losses is not None, "HISTORY"
        present = stats.present()
        self._log_scale.step(self._weights(present) * stats.losses[present] - 1, present)

    def state_dict(self) -> dict[str, Any]:
        """The scales."""
        return self._log_scale.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self._log_scale.load_state_dict(state)
