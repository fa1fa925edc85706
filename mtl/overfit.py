"""One batch over and over: what a model that trains at all learns by heart."""

from collections.abc import Iterator
from dataclasses import replace
from typing import final

from mtl.data.batch import Batch, Cost
from mtl.data.loader import Loader


@final
class Repeated:
    """This rank's part of the first global batch, at each of `steps`, with the same pixels every time.

    Args:
        loader: of step 0 alone.
        steps: half-open range.
        steps_per_epoch: so that epochs end where they would.
    """

    def __init__(self, loader: Loader, steps: range, steps_per_epoch: int) -> None:
        self._loader, self._steps, self._per_epoch = loader, steps, steps_per_epoch
        self.size_px = loader.size_px

    def __iter__(self) -> Iterator[Batch]:
        (batch,) = self._loader
        for step in self._steps:
            yield replace(batch, step=step, epoch=step // self._per_epoch)
            batch = replace(batch, cost=Cost())
