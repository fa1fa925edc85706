"""Scalars for TensorBoard in tensorboard/ of the run, one event file for each commit."""

import time
from typing import final

from mtl.tracking import events
from mtl.tracking.base import Row, Tracked, scalars
from mtl.tracking.parts import Parts


@final
class TensorBoard:
    """Curves over steps. A resumed run continues them: what was not committed is forgotten.

    TensorBoard reads the files of a folder in the order of their names, which is that of attempts and parts.
    """

    def __init__(self, run: Tracked) -> None:
        name = f"tensorboard/events.out.tfevents.a{run.attempt:05d}"
        self._parts = Parts(run.store, lambda number: f"{name}-{number:06d}", events.header())
        if run.attempt > 1:
            self._parts.add(events.restart(time.time(), run.step + 1))

    def log(self, step: int, row: Row) -> None:
        """Take in a row's numbers."""
        self._parts.add(events.summary(time.time(), step, scalars(row)))

    def flush(self) -> None:
        """Put the events since the last time."""
        self._parts.ship()

    def close(self) -> None:
        """Put what is left."""
        self.flush()
