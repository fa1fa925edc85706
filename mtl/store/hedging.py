"""When a request is slow enough to be made a second time."""

import threading
from collections import deque
from typing import final

_KEPT = 128
_LEAST = 32
_EVERY = 16  # how many waits are seen between two looks at their distribution
_FACTOR = 2.0
_SHORTEST_S = 0.05
_SAVED = 4.0


@final
class Hedging:
    """Dean & Barroso, "The Tail at Scale", 2013: ask again once the 95th percentile of waits has passed.

    Here after twice that, since what is asked for again is megabytes, and for no more than `share` of all requests, so
    that a server which became slow as a whole is not asked for everything twice.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._lock = threading.Lock()
        self._waits_s: deque[float] = deque(maxlen=_KEPT)
        self._seen, self._tokens = 0, 0.0
        self._delay_s: float | None = None

    @property
    def delay_s(self) -> float | None:
        """How long to wait for the first byte before asking again; None while too little is known."""
        return self._delay_s

    def observe(self, wait_s: float) -> None:
        """A request's first byte came after `wait_s`."""
        with self._lock:
            self._waits_s.append(wait_s)
            self._seen += 1
            self._tokens = min(_SAVED, self._tokens + self._share)
            if self._seen >= _LEAST and self._seen % _EVERY == 0:
                ordered = sorted(self._waits_s)
                self._delay_s = max(_SHORTEST_S, _FACTOR * ordered[int(0.95 * len(ordered))])

    def spend(self) -> bool:
        """Whether one more request may be made a second time."""
        with self._lock:
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True
