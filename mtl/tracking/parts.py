"""What grows during an attempt, kept in a run's storage as immutable parts."""

from collections.abc import Callable
from threading import Lock
from typing import final

from mtl.errors import StoreError
from mtl.store import Store


@final
class Parts:
    """Collects bytes and ships them, a new object each time.

    Args:
        store: of the run.
        key: of a part, from its number: 1, 2 and so on.
        header: what each part begins with.
    """

    def __init__(self, store: Store, key: Callable[[int], str], header: bytes = b"") -> None:
        self._store, self._key, self._header = store, key, header
        self._waiting, self._number, self._lock = b"", 0, Lock()

    def add(self, data: bytes) -> None:
        """Take in what the next part is to hold. May be called while another thread ships."""
        with self._lock:
            self._waiting += data

    def ship(self) -> None:
        """Put what has come since the last time; where storage fails it waits for the next time."""
        with self._lock:
            data, self._waiting = self._waiting, b""
        if not data:
            return
        try:
            self._store.put(self._key(self._number + 1), self._header + data)
            self._number += 1
        except StoreError:
            with self._lock:
                self._waiting = data + self._waiting
