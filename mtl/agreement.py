"""What all ranks know of a global batch before they train on it.

The reduction for a batch begins while the batch before it is trained on, so nothing waits for it.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mtl.blame import Sums
from mtl.data.batch import EMPTY, QUARANTINED, Batch
from mtl.runtime import Pending, Runtime
from mtl.tasks import TaskSpec


class Batches(Protocol):
    """This rank's batches, of images [size_px, size_px]: a `Loader`, or what is around one."""

    size_px: int

    def __iter__(self) -> Iterator[Batch]:
        """In their order."""
        ...


class Every:
    """True once a period, when called at least that often."""

    def __init__(self, period_s: float) -> None:
        self._period_s = period_s
        self.restart()

    def restart(self) -> None:
        """Begin a new period."""
        self._began = time.perf_counter()

    def __call__(self) -> bool:
        due = time.perf_counter() - self._began > self._period_s
        if due:
            self.restart()
        return due


@dataclass(frozen=True)
class Agreed:
    """What all ranks know of a global batch before its forward: counts, waits, and the flags.

    counts float64 [K]: valid labels of each task, or the sum of their weights: what a sum of losses is divided by.
    waits_s float64 [W]: seconds that each rank waited for its part.
    """

    counts: Tensor
    waits_s: Tensor
    quarantined: int
    samples: int
    stop: bool
    commit: bool
    log: bool


def own_counts(specs: list[TaskSpec], batch: Batch) -> Tensor:
    """Valid labels of this rank's part of a batch, or the sum of their weights: float64 [K]."""
    sums = [spec.weight_of(torch.from_numpy(batch.labels[spec.name])).sum() for spec in specs]
    return torch.stack(sums).double()


def divisor(counts: Tensor) -> Tensor:
    """What sums of losses are divided by: `counts`, but 1 where there is no label, as the sum is 0 there."""
    return torch.where(counts > 0, counts, 1.0)


def agreed_batches(
    loader: Batches,
    specs: list[TaskSpec],
    runtime: Runtime,
    *,
    stop: Callable[[], bool],
    commit: Callable[[], bool],
    log: Callable[[], bool],
) -> Iterator[tuple[Batch, Agreed, Sums]]:
    """Batches with what all ranks agreed on, and what this rank waited for.

    The reduction for a batch begins while the one before it is trained on.
    """

    def ask(batch: Batch, waited_s: float) -> Pending:
        counts = own_counts(specs, batch).tolist()
        waits = [waited_s if rank == runtime.rank else 0.0 for rank in range(runtime.world_size)]
        first = runtime.rank == 0
        flags = [stop(), first and commit(), first and log()]
        rows = [(batch.status == QUARANTINED).sum(), (batch.status != EMPTY).sum()]
        values = [*counts, *waits, *map(float, rows), *map(float, flags)]
        return runtime.control(torch.tensor(values, dtype=torch.float64))

    def answer(pending: Pending) -> Agreed:
        counts, waits, rest = pending.wait().split([len(specs), runtime.world_size, 5])
        quarantined, samples, *flags = rest.tolist()
        return Agreed(counts, waits, int(quarantined), int(samples), *(flag > 0 for flag in flags))

    source = iter(loader)
    following: tuple[Batch, Pending, float] | None = None
    while True:
        began = time.perf_counter()
        batch = next(source, None)
        waited_s = time.perf_counter() - began
        current, following = following, None if batch is None else (batch, ask(batch, waited_s), waited_s)
        if current is not None:
            made, pending, own_s = current
            began = time.perf_counter()
            agreed = answer(pending)
            late_s = time.perf_counter() - began
            yield present(made), agreed, _waits(made, own_s, max(late_s, float(agreed.waits_s.max()) - own_s))
        elif following is None:
            return
        if following is None:
            return


def portions(batches: Iterable[Batch], most: int) -> Iterator[Batch]:
    """The same samples in the same order, as batches of at most `most`."""
    for batch in batches:
        parts = [slice(at, at + most) for at in range(0, len(batch.images), most)]
        yield from (_taken(batch, part) for part in parts)


def present(batch: Batch) -> Batch:
    """`batch` without its empty slots, which would be blank images to batch norm; one stays where there is no other.

    Local batches may differ in size: gradients are weighed by counts of labels over all ranks.
    """
    filled = batch.status != EMPTY
    if filled.all():
        return batch
    n = int(filled.sum())
    keep = slice(0, max(n, 1)) if filled[:n].all() else np.flatnonzero(filled)
    return _taken(batch, keep)


def _taken(batch: Batch, keep: slice | npt.NDArray[np.int64]) -> Batch:
    return replace(
        batch,
        images=batch.images[keep],
        labels={task: values[keep] for task, values in batch.labels.items()},
        colour=batch.colour[keep],
        status=batch.status[keep],
        positions=batch.positions[keep],
    )


def _waits(batch: Batch, waited_s: float, straggler_s: float) -> Sums:
    """The wait for a batch, split between storage and decoding as the threads that made it spent their time."""
    cost = batch.cost
    made_s = cost.reading_s + cost.making_s
    storage_s = waited_s * cost.reading_s / made_s if made_s else 0.0
    return Sums(
        storage_s=storage_s,
        decode_s=waited_s - storage_s,
        straggler_s=straggler_s,
        samples=int((batch.status != EMPTY).sum()),
        cpu_s=cost.cpu_s,
        fetching_s=cost.fetching_s,
        fetched_bytes=cost.fetched_bytes,
    )
