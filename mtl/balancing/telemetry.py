"""What balancing did over a window of steps: means, kept on the device so that nothing waits for them."""

from collections.abc import Iterable, Sequence
from typing import Any, final

import torch
from torch import Tensor

from mtl.balancing.base import TaskStats
from mtl.balancing.statistic import cosines


@final
class Telemetry:
    """Sums over the steps since the last report; a task counts in those in which it had a label."""

    def __init__(self, tasks: int, device: torch.device) -> None:
        self._tasks, self._device = tasks, device
        self._clear()

    def _clear(self) -> None:
        zeros = torch.zeros(self._tasks, dtype=torch.float64, device=self._device)
        self._weights, self._steps, self._norms, self._norm_steps = (zeros.clone() for _ in range(4))
        self._seen = ""
        self._cosines, self._pair_steps, self._unbiased, self._unbiased_steps = (torch.diag(zeros) for _ in range(4))

    def add(self, stats: TaskStats, weights: Tensor) -> None:
        """A step, and the weights [K] that were used in it."""
        there = (stats.counts > 0).to(self._device, torch.float64)
        self._weights += weights * there
        self._steps += there
        if stats.gram is not None:
            gram = stats.gram.double()
            self._seen = "exact" if stats.exact else "boundary"
            self._norms += gram.diagonal().clamp(min=0).sqrt() * there
            self._norm_steps += there
            self._cosines += cosines(gram) * there[:, None] * there
            self._pair_steps += there[:, None] * there
        if stats.unbiased is not None:
            known = stats.unbiased.isfinite()
            self._unbiased += torch.where(known, stats.unbiased.double(), 0.0)
            self._unbiased_steps += known

    def report(self, names: Sequence[str]) -> dict[str, Any]:
        """Mean weights, and the steps that they are of; where gradients were looked at, norms and pairwise cosines, and
        where they were `seen`: exact or boundary.

        Where more than one rank had the exact gradients, also `unbiased`: norms and cosines of the mean Gram matrix
        without the noise of the batches. Single steps would not do: a squared length may come out negative.

        Starts a new window.
        """
        weights = (self._weights / self._steps.clamp(min=1)).tolist()
        row: dict[str, Any] = {
            "weights": dict(zip(names, weights, strict=True)),
            "steps": dict(zip(names, self._steps.tolist(), strict=True)),
        }
        if bool(self._norm_steps.any()):
            norms = (self._norms / self._norm_steps.clamp(min=1)).tolist()
            row["seen"] = self._seen
            row["norms"] = dict(zip(names, norms, strict=True))
            row["cosines"] = _pairs(names, self._cosines / self._pair_steps.clamp(min=1))
        if bool(self._unbiased_steps.any()):
            mean = self._unbiased / self._unbiased_steps.clamp(min=1)
            lengths = mean.diagonal().clamp(min=0).sqrt().tolist()
            between = _pairs(names, cosines(mean).clamp(-1, 1))
            row["unbiased"] = {"norms": dict(zip(names, lengths, strict=True)), "cosines": between}
        self._clear()
        return row


def together(valid: Iterable[Tensor]) -> Tensor:
    """How many samples have labels of both tasks, [K, K], from where each task's label is present: bool [n] of each."""
    present = torch.stack([each.double() for each in valid])
    return present @ present.T


def overlap(names: Sequence[str], both: Tensor) -> dict[str, float]:
    """Of each pair of tasks, `a/b`, the share of the scarcer label's samples that have both; `both` as of
    `together`."""
    own = both.diagonal()
    return _pairs(names, both / torch.minimum(own[:, None], own).clamp(min=1))


def _pairs(names: Sequence[str], matrix: Tensor) -> dict[str, float]:
    """The entries above the diagonal, by `a/b`."""
    rows = matrix.tolist()
    return {f"{names[i]}/{names[j]}": rows[i][j] for i in range(len(names)) for j in range(i + 1, len(names))}
