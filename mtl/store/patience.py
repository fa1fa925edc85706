"""How long reads over a network are waited for, and how often they are tried again."""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import final


@dataclass(frozen=True)
class Patience:
    """Deadlines of ranged reads. They watch progress: a slow body is waited for, one that trickles is not.

    connect_s         to connect, TLS included
    answer_s          from a request to the first byte of its answer
    window_s          a body that brings fewer than `window_bytes` in so long is cut off
    window_bytes
    contact_s         without any answer in the life of this process: the address is wrong, and that is said soon
    total_s           without progress, tries and pauses together, after which a read fails
    backoff_s         mean of the first pause is half of it; it doubles with each try up to `backoff_most_s`
    backoff_most_s
    retry_rate        retries a process may make a second when nothing succeeds ...
    retry_burst       ... beyond this many at once
    retry_share       retries that a success allows
    hedge_share       most second requests for slow ones, as a share of all; 0 turns them off
    """

    connect_s: float = 3.0
    answer_s: float = 10.0
    window_s: float = 5.0
    window_bytes: int = 128 << 10
    contact_s: float = 8.0
    total_s: float = 120.0
    backoff_s: float = 0.1
    backoff_most_s: float = 5.0
    retry_rate: float = 2.0
    retry_burst: float = 20.0
    retry_share: float = 0.25
    hedge_share: float = 0.05


@final
class RetryBudget:
    """A bucket of tokens, one for each retry: an outage is not answered with a multiple of the usual load.

    Successes and time fill it. A retry that finds it empty is told how long to wait for its token, so that many threads
    together retry at `retry_rate`.
    """

    def __init__(self, patience: Patience, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience, self._clock = patience, clock
        self._lock = threading.Lock()
        self._tokens, self._at = patience.retry_burst, clock()

    def spend(self) -> float:
        """Take a token; returns the seconds until it is there."""
        with self._lock:
            self._fill()
            self._tokens -= 1
            return max(0.0, -self._tokens / self._patience.retry_rate)

    def earn(self) -> None:
        """A request succeeded."""
        with self._lock:
            self._tokens = min(self._patience.retry_burst, self._tokens + self._patience.retry_share)

    def _fill(self) -> None:
        now = self._clock()
        self._tokens += (now - self._at) * self._patience.retry_rate
        self._tokens, self._at = min(self._patience.retry_burst, self._tokens), now


def pause_s(patience: Patience, tries: int, draw: random.Random) -> float:
    """The pause after the `tries`-th failure (from 1) of one read: exponential backoff with full jitter.

    Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    return draw.uniform(0, min(patience.backoff_most_s, patience.backoff_s * 2 ** min(tries - 1, 30)))
