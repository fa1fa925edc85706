"""All tasks' gradients at the boundary between shared part and heads, in one ordinary backward.

One autograd function sits on everything that leaves the shared part. Its forward hands a view to each task; its
backward receives all cotangents at once, forms their Gram matrix, sums it over ranks, asks the balancer, and passes
on sum_k w_k c_k. No graph is retained, the shared part is traversed once, and the hooks of DistributedDataParallel
fire once.

Each head receives its own task's gradient, unweighted. The sum over ranks is issued on the group of the gradients; its
place among the gradients' own is the same on every rank, because their graphs are.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mtl.balancing.base import TaskStats
from mtl.balancing.signals.base import Scale, Weigher, guarded
from mtl.balancing.statistic import Shared, Statistic, precise


@final
class Boundary:
    """Weights from a statistic of the cotangents.

    Args:
        parallel: the module whose backward averages gradients over ranks; called with the boundary.
        statistic: None uses the last known weights and forms none.
        lag: weigh by the statistic of the step before, for which nothing has to wait.
    """

    def __init__(
        self, weigher: Weigher, parallel: nn.Module, scale: Scale, statistic: Statistic | None, *, lag: bool
    ) -> None:
        self._weigher, self._parallel, self._scale = weigher, parallel, scale
        self._statistic, self._lag = statistic, lag

    def begin(self, stats: TaskStats) -> None:
        """Nothing is known yet but the counts."""
        self._stats, self._share = stats, self._weigher.share(stats)
        self._losses = torch.zeros_like(self._share)
        self._sums: Tensor | None = None
        self._pending = None
        self._last = False

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Outputs by task, each from its own view of what is shared."""
        return self._parallel(images, self.fork)

    def fork(self, shared: Shared) -> Sequence[Shared]:
        """A view of `shared` for each task."""
        views: tuple[Tensor, ...] = _Fork.apply(self, self._weigher.tasks, *shared)  # type: ignore[no-untyped-call]
        n = len(shared)
        return [views[n * k : n * (k + 1)] for k in range(self._weigher.tasks)]

    def backward(self, sums: Tensor, last: bool) -> None:
        """One backward of the plain sum."""
        self._last = last
        self._losses += sums.detach().double() * self._share
        share = self._share * self._weigher.ranks.size * self._scale()
        guarded((sums * share.to(sums.dtype)).sum()).backward()

    def weigh(self, shared: Shared, cotangents: Sequence[Shared]) -> Tensor:
        """The weights [K] of a micro-batch's cotangents. Called within backward."""
        weigher, ranks = self._weigher, self._weigher.ranks
        if self._statistic is None:
            return weigher.known
        factor = 1 / (ranks.size * self._scale())
        # Precise before they are unscaled: in fp16 most of what the scale has saved would be lost again.
        sums = self._statistic.sums(shared, [tuple(precise(c) * factor for c in own) for own in cotangents])
        self._sums = sums if self._sums is None else self._sums + sums
        if self._last:
            packet = torch.cat([self._sums, self._losses.to(sums)])
            self._shapes = [tensor.shape for tensor in shared]
            if self._lag:
                self._pending = ranks.begin_sum(packet)
            else:
                self._fill(ranks.sum(packet))
                return weigher.ask(self._stats)
        return weigher.known

    def _fill(self, packet: Tensor) -> None:
        tasks = self._weigher.tasks
        sums, losses = packet[:-tasks], packet[-tasks:]
        assert self._statistic is not None
        gram = self._statistic.gram(sums, self._shapes, tasks)
        self._stats = replace(self._stats, gram=gram, losses=losses.double())

    def end(self) -> TaskStats:
        """The statistics, with Gram matrix and losses."""
        if self._pending is not None:
            self._fill(self._pending())
            self._weigher.ask(self._stats)
        return self._stats


class _Fork(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, boundary: Boundary, tasks: int, *shared: Tensor) -> tuple[Tensor, ...]:
        ctx.boundary, ctx.tasks = boundary, tasks
        ctx.save_for_backward(*shared)
        return tuple(tensor.view_as(tensor) for _ in range(tasks) for tensor in shared)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *cotangents: Tensor
    ) -> tuple[Tensor | None, ...]:
        shared: Shared = ctx.saved_tensors
        n = len(shared)
        each = [cotangents[n * k : n * (k + 1)] for k in range(ctx.tasks)]
        weights = ctx.boundary.weigh(shared, each)
        made = [
            torch.einsum("k,k...->...", weights.to(parts[0].dtype), torch.stack(parts))
            for parts in zip(*each, strict=True)
        ]
        return None, None, *made
