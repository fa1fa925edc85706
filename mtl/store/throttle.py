"""Fewer requests at once when the server asks for that, and slowly more again."""

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import final

_MOST = 256.0
_CUT = 0.7
_RISE = 2.0


@final
class Throttle:
    """A bound on concurrent requests: additive increase, multiplicative decrease (Chiu & Jain 1989).

    Factors as mild as 0.7 and 2: with 1 request in 100 answered by SlowDown the bound settles near
    sqrt(2 (1 + 0.7) / (2 (1 - 0.7)) / 0.01) = 24 requests, more than the threads that a worker reads with.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._bound, self._busy, self._cut_at = _MOST, 0, float("-inf")

    @property
    def bound(self) -> float:
        """Requests that may be under way at once."""
        return self._bound

    @contextmanager
    def slot(self) -> Generator[float]:
        """Hold a place among the requests under way; gives the time at which it was got."""
        with self._changed:
            while self._busy >= max(1, int(self._bound)):
                self._changed.wait()
            self._busy += 1
        try:
            yield self._clock()
        finally:
            with self._changed:
                self._busy -= 1
                self._changed.notify()

    def slow_down(self, since: float) -> None:
        """The server refused the request, whose slot was got at `since` and is still held.

        Those that were under way together count once.
        """
        with self._changed:
            if since >= self._cut_at:
                self._bound = max(1.0, min(self._bound, self._busy) * _CUT)
                self._cut_at = self._clock()

    def delivered(self) -> None:
        """A request succeeded."""
        with self._changed:
            self._bound = min(_MOST, self._bound + _RISE / self._bound)
            self._changed.notify()
