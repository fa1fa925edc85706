"""What stands for the inner products of the tasks' parameter gradients, seen from the boundary alone.

A boundary tensor z leaves the shared part; c_k = dL_k / dz, its cotangent, is what task k asks of it. All statistics
are sums over rows (samples, and positions of a map), so micro-batches and ranks add up before anything is multiplied
out.
"""

from collections.abc import Sequence
from typing import Protocol, final

import torch
from torch import Tensor

Shared = tuple[Tensor, ...]
"""Every tensor that leaves the shared part; axis 0 is the sample."""


class Statistic(Protocol):
    """A Gram matrix from cotangents."""

    def sums(self, shared: Shared, cotangents: Sequence[Shared]) -> Tensor:
        """Numbers [m] that add up over micro-batches and ranks, in fp32 or better. `cotangents`: of each of K tasks."""
        ...

    def gram(self, sums: Tensor, shapes: Sequence[torch.Size], tasks: int) -> Tensor:
        """The Gram matrix [K, K] of what was added up, from boundary tensors of these shapes."""
        ...


@final
class Samples:
    """sum_b c_kb . c_lb: the products sample by sample.

    It can not see a conflict between samples that carry labels of different tasks.
    """

    def sums(self, shared: Shared, cotangents: Sequence[Shared]) -> Tensor:
        """K * K products."""
        rows = torch.stack([torch.cat([precise(part).flatten() for part in own]) for own in cotangents])
        return (rows @ rows.T).flatten()

    def gram(self, sums: Tensor, shapes: Sequence[torch.Size], tasks: int) -> Tensor:
        """The products."""
        return sums.view(tasks, tasks)


@final
class Linear:
    """The gradients of a virtual linear layer at the boundary: sum_b c_kb (z_b - mean z)^T, [D, D] for each task.

    It sees across samples. Where D is large its second axis is sketched: random signs [D, columns], the same on every
    rank and at every step, keep inner products in expectation.

    Args:
        columns: of the sketch; no sketch of a tensor that has no more channels than this.
        centred: whether the mean of z is taken off, as batch norm below the boundary would do.
    """

    def __init__(self, columns: int = 128, *, centred: bool = True) -> None:
        self._columns, self._centred = columns, centred
        self._signs: dict[tuple[int, torch.device, torch.dtype], Tensor] = {}

    def sums(self, shared: Shared, cotangents: Sequence[Shared]) -> Tensor:
        """For each tensor: c^T z [K, D, r], the sums of c [K, D] and of z [r], and the number of rows."""
        parts: list[Tensor] = []
        for at, tensor in enumerate(shared):
            z = self._sketch(_rows(precise(tensor)))
            c = torch.stack([_rows(precise(own[at])) for own in cotangents])  # [K, rows, D]
            parts += [(c.mT @ z).flatten(), c.sum(1).flatten(), z.sum(0), z.new_tensor([len(z)])]
        return torch.cat(parts)

    def gram(self, sums: Tensor, shapes: Sequence[torch.Size], tasks: int) -> Tensor:
        """The products of the centred gradients, added over the tensors."""
        gram = sums.new_zeros(tasks, tasks)
        for shape in shapes:
            width = shape[1] if len(shape) == 4 else shape[-1]
            columns = min(width, self._columns)
            sizes = [tasks * width * columns, tasks * width, columns, 1]
            raw, c, z, rows = sums[: sum(sizes)].split(sizes)
            sums = sums[sum(sizes) :]
            layer = raw.view(tasks, width, columns)
            if self._centred:
                layer = layer - c.view(tasks, width, 1) * (z / rows)
            gram = gram + layer.flatten(1) @ layer.flatten(1).T
        return gram

    def _sketch(self, z: Tensor) -> Tensor:
        width = z.shape[1]
        if width <= self._columns:
            return z
        key = width, z.device, z.dtype
        if key not in self._signs:
            draws = torch.rand(width, self._columns, generator=torch.Generator().manual_seed(width))
            self._signs[key] = ((draws < 0.5).to(z.dtype) * 2 - 1).to(z.device) * self._columns**-0.5
        return z @ self._signs[key]


_COMMON = 0.1  # of the kernel of a net with batch norm: what any two samples have in common


@final
class Joint:
    """Both: the products sample by sample, and those of the virtual layer in units of the mean square length of z.

    That is sum_bb' K_bb' c_kb . c_lb' with K = 1 + z z^T / mean |z|^2, in place of the kernel of the shared part's
    parameters: a sample moves the features of its own kind, and most of all its own. Batch norm takes out most of what
    samples have in common, so there z is centred, and a tenth in every place of K stands for what is left.

    Args:
        columns: of the virtual layer.
        batch_norm: whether the shared part normalises over the batch.
    """

    def __init__(self, columns: int = 128, *, batch_norm: bool = False) -> None:
        self._samples, self._linear = Samples(), Linear(columns, centred=batch_norm)
        self._columns, self._batch_norm = columns, batch_norm

    def sums(self, shared: Shared, cotangents: Sequence[Shared]) -> Tensor:
        """Those of both, and for each tensor the sum of the squares of z."""
        parts = [self._samples.sums(shared, cotangents)]
        for at, tensor in enumerate(shared):
            parts += [self._linear.sums((tensor,), [(own[at],) for own in cotangents])]
            parts += [precise(tensor).square().sum().view(1)]
        return torch.cat(parts)

    def gram(self, sums: Tensor, shapes: Sequence[torch.Size], tasks: int) -> Tensor:
        """The products of both, added over the tensors."""
        gram, sums = self._samples.gram(sums[: tasks * tasks], shapes, tasks), sums[tasks * tasks :]
        for shape in shapes:
            width = shape[1] if len(shape) == 4 else shape[-1]
            columns = min(width, self._columns)
            size = tasks * width * (columns + 1) + columns + 1
            layer, square, sums = sums[:size], sums[size], sums[size + 1 :]
            z, rows = layer[-columns - 1 : -1], layer[-1]
            length = square / rows - (z / rows).square().sum() * self._batch_norm
            linear = self._linear.gram(layer, [shape], tasks)
            gram = gram + torch.where(length > 0, linear / length, torch.zeros_like(linear))
            if self._batch_norm:
                c = layer[tasks * width * columns : -columns - 1].view(tasks, width)
                gram = gram + _COMMON * c @ c.T
        return gram


STATISTICS = {"joint": Joint, "samples": Samples, "linear": Linear}


def _rows(tensor: Tensor) -> Tensor:
    """[rows, D]: a map [n, C, H, W] is n * H * W rows of C channels, anything else has its channels last."""
    tensor = tensor.movedim(1, -1) if tensor.ndim == 4 else tensor
    return tensor.reshape(-1, tensor.shape[-1])


def precise(tensor: Tensor) -> Tensor:
    """`tensor` in fp32 or better."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def fidelity(boundary: Tensor, exact: Tensor) -> float:
    """How well one Gram matrix stands for the other: the correlation of their pairwise cosines, 0 if one is constant.

    Args:
        boundary, exact: [batches, K, K], of the same batches.
    """
    tasks = exact.shape[-1]
    pairs = torch.triu_indices(tasks, tasks, 1)
    both = torch.stack([cosines(gram.double())[:, pairs[0], pairs[1]].flatten() for gram in (boundary, exact)])
    return torch.corrcoef(both)[0, 1].nan_to_num(0.0).item()


def cosines(gram: Tensor) -> Tensor:
    """Pairwise cosines [..., K, K] of a Gram matrix; zero beside a gradient that is zero."""
    norms = gram.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    inverse = torch.where(norms > 0, 1 / norms, torch.zeros_like(norms))
    return gram * inverse[..., :, None] * inverse[..., None, :]
