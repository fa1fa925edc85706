"""What all ranks know of a global batch before they train on it.

The reduction for a batch begins while the batch before it is trained on, so nothing waits for it.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.data.loader import EMPTY, QUARANTINED, Batch, Loader
from mtl.runtime import Pending, Runtime
from mtl.tasks import TaskSpec


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
    """What all ranks know of a global batch before its forward: valid labels per task [K], and the flags."""

    counts: Tensor
    quarantined: int
    samples: int
    stop: bool
    commit: bool
    log: bool


def agreed_batches(
    loader: Loader,
    specs: list[TaskSpec],
    runtime: Runtime,
    *,
    stop: Callable[[], bool],
    commit: Callable[[], bool],
    log: Callable[[], bool],
) -> Iterator[tuple[Batch, Agreed, float]]:
    """Batches with what all ranks agreed on, and the seconds this rank waited for data.

    The reduction for a batch begins while the one before it is trained on.
    """

    def ask(batch: Batch) -> Pending:
        counts = [float(spec.valid(torch.from_numpy(batch.labels[spec.name])).sum()) for spec in specs]
        first = runtime.rank == 0
        flags = [stop(), first and commit(), first and log()]
        rows = [(batch.status == QUARANTINED).sum(), (batch.status != EMPTY).sum()]
        return runtime.control(torch.tensor([*counts, *map(float, rows), *map(float, flags)], dtype=torch.float64))

    def answer(pending: Pending) -> Agreed:
        values = pending.wait()
        k = len(specs)
        quarantined, samples, *flags = values[k:].tolist()
        return Agreed(values[:k], int(quarantined), int(samples), *(flag > 0 for flag in flags))

    source = iter(loader)
    following: tuple[Batch, Pending, float] | None = None
    while True:
        began = time.perf_counter()
        batch = next(source, None)
        waited_s = time.perf_counter() - began
        current, following = following, None if batch is None else (batch, ask(batch), waited_s)
        if current is not None:
            yield current[0], answer(current[1]), current[2]
        elif following is None:
            return
        if following is None:
            return
