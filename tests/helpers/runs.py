"""What tests of runs share: a clock of their own, commits, and owners that die."""

import threading
from collections.abc import Callable

from mtl.lease import Clock, Lease
from mtl.record import Commit, Record, checkpoint_path, read
from tests.helpers.memory_store import MemoryStore

NEVER_S = 1e6


class FakeTime:
    """A clock that only sleeping moves; `on_sleep` lets another job act meanwhile."""

    def __init__(self, on_sleep: Callable[[], None] = lambda: None) -> None:
        self.now_s = 0.0
        self._on_sleep = on_sleep
        self._lock = threading.Lock()

    def clock(self) -> Clock:
        return Clock(monotonic=lambda: self.now_s, sleep=self._sleep)

    def _sleep(self, seconds: float) -> None:
        with self._lock:
            self.now_s += seconds
        self._on_sleep()


def die(lease: Lease) -> None:
    """The end of the owning process, as far as the store can tell."""
    lease._closing.set()
    lease._thread.join()


def make_commit(step: int, attempt: int = 1) -> Commit:
    path = checkpoint_path(step, attempt)
    return Commit(path=path, step=step, epoch=0, samples=step * 8, manifest_sha256="0" * 64, time="")


def record_of(store: MemoryStore) -> Record:
    record = read(store)
    assert record is not None
    return record
