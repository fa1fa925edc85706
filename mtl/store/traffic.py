"""What reading over a network has cost this process."""

import threading
from dataclasses import dataclass
from typing import final


@dataclass(frozen=True)
class Traffic:
    """Counts since the process began.

    retries    requests made again after a failure
    throttles  answers that asked for fewer requests
    hedges     second requests for what was slow to begin
    """

    retries: int = 0
    throttles: int = 0
    hedges: int = 0


@final
class Counter:
    """Counts; safe between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._retries = self._throttles = self._hedges = 0

    def add(self, *, retries: int = 0, throttles: int = 0, hedges: int = 0) -> None:
        """Add to the counts."""
        with self._lock:
            self._retries += retries
            self._throttles += throttles
            self._hedges += hedges

    def snapshot(self) -> Traffic:
        """The counts now."""
        with self._lock:
            return Traffic(self._retries, self._throttles, self._hedges)
