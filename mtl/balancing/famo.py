"""FAMO: Liu et al., "FAMO: Fast Adaptive Multitask Optimization" (NeurIPS 2023), algorithm 2.

Weights c z_k / L_k with z = softmax(xi) and c such that they sum to one. After the step xi moves down the gradient
J^T (log L_before - log L_after), J the Jacobian of the softmax: a task that improved less than others gains.

Deviation: a loss below 1e-8 counts as that. The losses after the step cost one more forward.
"""

from typing import Any, final

from torch import Tensor

from mtl.balancing.base import LossMethod, Needs, TaskStats
from mtl.balancing.learned import Learned

_LOW = 1e-8


@final
class FAMO(LossMethod):
    """Every loss falls at the same relative rate.

    Args:
        lr: learning rate of the logits, beta in the paper.
        decay: of the logits, gamma in the paper.
    """

    needs = Needs.LOSSES | Needs.POST_STEP_LOSSES

    def __init__(self, tasks: int, seed: int, *, lr: float = 0.025, decay: float = 1e-3) -> None:
        super().__init__(tasks, seed)
        self._logits = Learned(tasks, start=0.0, lr=lr, decay=decay)

    def weigh(self, losses: Tensor, stats: TaskStats) -> Tensor:
        ratio = self._logits.at(stats.present()).softmax(0) / losses.clamp(min=_LOW)
        return ratio / ratio.sum()

    def update(self, stats: TaskStats, post_losses: Tensor | None = None) -> None:
        """Move the logits."""
        assert stats.losses is not None, "LOSSES"
        assert post_losses is not None, "POST_STEP_LOSSES"
        present = stats.present()
        gained = (stats.losses[present].clamp(min=_LOW) / post_losses[present].clamp(min=_LOW)).log()
        z = self._logits.at(present).softmax(0)
        self._logits.step(z * (gained - (z * gained).sum()), present)

    def state_dict(self) -> dict[str, Any]:
        """The logits."""
        return self._logits.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self._logits.load_state_dict(state)
