"""The Gram matrix of the shared parameters' gradients themselves: the truth, at the price of K backwards.

The gradient of each task's global loss is a row. Rows are formed outside the hooks of DistributedDataParallel, added
over micro-batches, and summed over ranks so that each rank holds a shard of every row: the Gram matrix is that of
averaged gradients, which no average of the ranks' own Gram matrices is. Each rank combines its shard, and the shards
are gathered.
"""

from dataclasses import replace
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mtl.balancing.base import TaskStats
from mtl.balancing.signals.base import Scale, Weigher, guarded
from mtl.balancing.statistic import precise

_PIECE = 1 << 12  # numbers of a row


@final
class Exact:
    """Weights from the exact Gram matrix. Each head receives its own task's gradient, unweighted.

    Args:
        model: the module itself.
        shared, own: its shared parameters, and those of each task.
    """

    def __init__(
        self,
        weigher: Weigher,
        model: nn.Module,
        scale: Scale,
        shared: list[nn.Parameter],
        own: list[list[nn.Parameter]],
    ) -> None:
        self._weigher, self._model, self._scale = weigher, model, scale
        self._shared = [p for p in shared if p.requires_grad]
        self._own = [[p for p in parameters if p.requires_grad] for parameters in own]
        # Kept from step to step: on a CPU, asking the system for this memory anew costs more than filling it.
        self._rows = Tensor()

    def begin(self, stats: TaskStats) -> None:
        """Nothing is known yet but the counts."""
        self._stats, self._share = stats, self._weigher.share(stats)
        self._losses = torch.zeros_like(self._share)
        self._first = True
        if not self._rows.numel():
            self._rows = self._buffer()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Outputs by task."""
        return self._model(images)

    def backward(self, sums: Tensor, last: bool) -> None:
        """One backward for each task, with the graph of the shared part kept for the next."""
        self._losses += sums.detach().double() * self._share
        losses = guarded(sums * (self._share * self._scale()).to(sums.dtype))
        rows = self._rows
        for k, own in enumerate(self._own):
            wanted = [*self._shared, *own]
            found = torch.autograd.grad(losses[k], wanted, retain_graph=k < len(rows) - 1, materialize_grads=True)
            at = 0
            for parameter, gradient in zip(self._shared, found, strict=False):
                part = _laid_out(rows[k], at, parameter)
                part.copy_(gradient) if self._first else part.add_(gradient)
                at += parameter.numel()
            for parameter, gradient in zip(own, found[len(self._shared) :], strict=True):
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        self._first = False

    def _buffer(self) -> Tensor:
        """Rows [K, W * part], padded with zeros to whole parts: of the W ranks rank r will keep part r."""
        size, ranks = sum(p.numel() for p in self._shared), self._weigher.ranks.size
        rows = self._shared[0].new_empty(len(self._own), -(-size // ranks) * ranks)
        rows[:, size:] = 0
        return rows

    def end(self) -> TaskStats:
        """Sum over ranks, weigh, and leave the gradients in the parameters."""
        weigher, ranks = self._weigher, self._weigher.ranks
        shard = self._rows
        within = self._within_ranks(self._rows)
        if ranks.size > 1:
            parts = [part.contiguous() for part in self._rows.chunk(ranks.size, dim=1)]
            shard = torch.empty_like(parts[0])
            dist.reduce_scatter(shard, parts)
        gram = _products(shard) / self._scale() ** 2
        packet = ranks.sum(torch.cat([gram.flatten(), self._losses.to(gram), *(part.flatten() for part in within)]))
        k = len(self._own)
        gram, losses, *within = packet.split([k * k, k, *(k * k for _ in within)])
        gram = gram.view(k, k)
        unbiased = _across_ranks(gram, *(part.view(k, k) for part in within)) if within else None
        self._stats = replace(self._stats, gram=gram, exact=True, losses=losses.double(), unbiased=unbiased)
        combined = _combine(shard, weigher.ask(self._stats))
        if ranks.size > 1:
            whole = combined.new_empty(ranks.size, len(combined))
            dist.all_gather(list(whole), combined)
            combined = whole.flatten()
        at = 0
        for parameter in self._shared:
            parameter.grad = _laid_out(combined, at, parameter)
            at += parameter.numel()
        self._sum_heads()
        return self._stats

    def _within_ranks(self, rows: Tensor) -> list[Tensor]:
        """Two matrices [K, K] that are to be added over ranks: products of this rank's own rows, and shares of the
        products of counts that lie on it. Nothing where there is one rank."""
        if self._weigher.ranks.size == 1 or self._stats.own_counts is None:
            return []
        products = _products(rows) / self._scale() ** 2
        counts = self._stats.own_counts() / self._stats.counts.clamp(min=1e-12)
        counts = counts.to(products)
        return [products, counts[:, None] * counts]

    def _sum_heads(self) -> None:
        if self._weigher.ranks.size == 1:
            return
        gradients = [p.grad for own in self._own for p in own if p.grad is not None]
        flat = self._weigher.ranks.sum(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view(gradient.shape))


def _products(rows: Tensor) -> Tensor:
    """The inner products [K, K] of long rows, in fp32 or better.

    On a CPU piece by piece, each of which fits into a cache: that reads each row once, on all cores, and sums of sums
    round off less than one long sum.
    """
    rows = precise(rows)
    if rows.is_cuda:
        return rows @ rows.T
    count = rows.shape[1] // _PIECE
    whole, rest = rows.tensor_split([count * _PIECE], dim=1)
    pieces = whole.unflatten(1, (count, _PIECE)).transpose(0, 1)
    return torch.bmm(pieces, pieces.mT).sum(0).addmm_(rest, rest.T)


def _combine(rows: Tensor, weights: Tensor) -> Tensor:
    """Their weighted sum, in the place of the first: a row more would be the peak of a step's memory."""
    weights, first = weights.to(rows.dtype), rows[0]
    first.mul_(weights[0])
    for row, weight in zip(rows[1:], weights[1:], strict=True):
        first.addcmul_(row, weight)
    return first


def _across_ranks(gram: Tensor, within: Tensor, shares: Tensor) -> Tensor:
    """The Gram matrix from products of gradients on different ranks alone, whose noise is independent: [K, K].

    With equal counts it is W / (W - 1) (gram - within). Not a number where all labels of a pair lie on one rank.
    """
    across = 1 - shares
    return torch.where(across > 1e-3, (gram - within) / across, torch.nan)


def _laid_out(flat: Tensor, at: int, parameter: nn.Parameter) -> Tensor:
    """The part of `flat` from `at` on as a tensor like `parameter`, in its memory layout: copies are straight."""
    return flat.as_strided(parameter.shape, parameter.stride(), flat.storage_offset() + at)
