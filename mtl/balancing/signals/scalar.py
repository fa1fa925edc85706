"""One backward of the weighted sum of losses: all that a method needs that looks at no gradients."""

from dataclasses import replace
from typing import final

import torch
from torch import Tensor, nn

from mtl.balancing.base import Needs, TaskStats
from mtl.balancing.signals.base import Scale, Weigher, guarded


@final
class Scalar:
    """Heads, too, receive weighted gradients.

    Args:
        parallel: the module whose backward averages gradients over ranks.
        lag: weigh by the losses of the step before, for which nothing has to wait.
    """

    def __init__(self, weigher: Weigher, parallel: nn.Module, scale: Scale, *, lag: bool) -> None:
        self._weigher, self._parallel, self._scale, self._lag = weigher, parallel, scale, lag
        needs = weigher.needs
        self._waits = bool(needs & Needs.LOSSES) and not lag
        self._reports = lag or bool(needs & (Needs.LOSSES | Needs.HISTORY | Needs.POST_STEP_LOSSES))

    def begin(self, stats: TaskStats) -> None:
        """Ask for the weights, unless they depend on losses."""
        self._stats, self._share = stats, self._weigher.share(stats)
        self._sums = torch.zeros_like(self._share)
        if self._lag:
            self._weights = self._weigher.known
        elif not self._waits:
            self._weights = self._weigher.ask(stats)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Outputs by task."""
        return self._parallel(images)

    def backward(self, sums: Tensor, last: bool) -> None:
        """One backward of the weighted sum."""
        ranks = self._weigher.ranks
        self._sums += sums.detach().double()
        if last and self._reports:
            self._losses = ranks.begin_sum(self._sums * self._share)
        if self._waits:
            self._stats = replace(self._stats, losses=self._losses())
            self._weights = self._weigher.ask(self._stats)
        share = self._weights * self._share * ranks.size * self._scale()
        guarded((sums * share.to(sums.dtype)).sum()).backward()

    def end(self) -> TaskStats:
        """The statistics, with losses where the method looks at them."""
        if self._reports and not self._waits:
            self._stats = replace(self._stats, losses=self._losses())
        if self._lag:
            self._weigher.ask(self._stats)
        return self._stats
