"""Dynamic weight average: Liu, Johns and Davison, "End-to-End Multi-Task Learning with Attention" (CVPR 2019).

w_k = K softmax_k(r_k / T), with r_k the loss of the last epoch over that of the one before (equation 7). In the first
two epochs every weight is one. The losses of an epoch are means over its labels, so that no label counts more for
being in a batch with few of them.
"""

from typing import Any, final

import torch
from torch import Tensor

from mtl.balancing.base import Needs, TaskStats, spread

_NAMES = ("sums", "counts", "last", "before")


@final
class DWA:
    """A higher weight for a task whose loss falls slower.

    Args:
        temperature: T; larger is more uniform.
    """

    needs = Needs.HISTORY

    def __init__(self, tasks: int, seed: int, *, temperature: float = 2.0) -> None:
        self._tasks, self._temperature = tasks, temperature
        self._epoch = 0
        # Of this epoch, and the means of the last two; NaN where a task had no label yet.
        self._sums, self._counts = (torch.zeros(tasks, dtype=torch.float64) for _ in range(2))
        self._last, self._before = (torch.full((tasks,), torch.nan, dtype=torch.float64) for _ in range(2))

    def weights(self, stats: TaskStats) -> Tensor:
        """The weights, [K]."""
        last, before = self._means(stats.epoch)
        ratio = last / before
        # A task without two epochs behind it falls as if it stood still.
        ratio = torch.where(ratio.isfinite(), ratio, torch.ones_like(ratio))
        present = stats.present().to(ratio.device)
        made = len(present) * (ratio[present] / self._temperature).softmax(0)
        return spread(made, present, self._tasks)

    def _means(self, epoch: int) -> tuple[Tensor, Tensor]:
        if epoch == self._epoch:
            return self._last, self._before
        known = self._counts > 0
        mean = torch.where(known, self._sums / self._counts.clamp(min=1e-12), self._last)
        return mean, torch.where(known, self._last, self._before)

    def update(self, stats: TaskStats, post_losses: Tensor | None = None) -> None:
        """Add the step to its epoch."""
        assert stats.losses is not None, "HISTORY"
        device = stats.losses.device
        self._last, self._before = (tensor.to(device) for tensor in self._means(stats.epoch))
        fresh = stats.epoch != self._epoch
        counts = stats.counts.to(device)
        self._sums = stats.losses * counts + (0 if fresh else self._sums.to(device))
        self._counts = counts + (0 if fresh else self._counts.to(device))
        self._epoch = stats.epoch

    def state_dict(self) -> dict[str, Any]:
        """The sums of this epoch, and the means of the two before."""
        sums = (self._sums, self._counts, self._last, self._before)
        return {"epoch": self._epoch} | {
            name: [None if value != value else value for value in tensor.tolist()]
            for name, tensor in zip(_NAMES, sums, strict=True)
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self._epoch = int(state["epoch"])
        self._sums, self._counts, self._last, self._before = (
            torch.tensor([torch.nan if value is None else value for value in state[name]], dtype=torch.float64)
            for name in _NAMES
        )
