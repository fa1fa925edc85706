"""Rows as lines of JSON, metrics/a3-000001.jsonl and so on: the run's own record, which other jobs read."""

import json
from typing import final

from mtl.tracking.base import Row, Tracked
from mtl.tracking.parts import Parts


@final
class JsonLines:
    """One part for each commit. Readers take the highest attempt per step."""

    def __init__(self, run: Tracked) -> None:
        self._parts = Parts(run.store, lambda number: f"metrics/a{run.attempt}-{number:06d}.jsonl")

    def log(self, step: int, row: Row) -> None:
        """Take in a line."""
        self._parts.add(json.dumps(row).encode() + b"\n")

    def flush(self) -> None:
        """Put the lines since the last time."""
        self._parts.ship()

    def close(self) -> None:
        """Put what is left."""
        self.flush()
