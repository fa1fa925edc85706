"""What a driver and its workers say, kept with the run so that it outlives their machines."""

import threading
from datetime import UTC, datetime
from typing import final

from mtl.errors import StoreError
from mtl.store import Store

_MOST = 4 << 20  # characters of one source that wait for storage to come back


@final
class Logs:
    """Collects text by source and ships it: logs/a3/driver-000001.log and so on, one part of each source a time.

    Any thread may add text; one ships it.

    Args:
        store: of the run.
        attempt: the first one of this job.
    """

    def __init__(self, store: Store, attempt: int) -> None:
        self._store, self._attempt = store, attempt
        self._waiting: dict[str, str] = {}
        self._parts: dict[str, int] = {}
        self._lock = threading.Lock()

    def add(self, source: str, text: str) -> None:
        """Take in what `source` has written."""
        if text:
            with self._lock:
                self._waiting[source] = (self._waiting.get(source, "") + text)[-_MOST:]

    def say(self, text: str) -> None:
        """Take in a sentence of the driver, stamped with the time in UTC."""
        self.add("driver", f"{datetime.now(UTC).isoformat(timespec='seconds')}  {text}\n")

    def ship(self) -> None:
        """Put what has come since the last time; where storage fails it waits for the next time."""
        for source in list(self._waiting):
            with self._lock:
                text = self._waiting.pop(source)
            part = self._parts.get(source, 0) + 1
            try:
                self._store.put(f"logs/a{self._attempt}/{source}-{part:06d}.log", text.encode(errors="replace"))
            except StoreError:
                with self._lock:
                    self._waiting[source] = (text + self._waiting.get(source, ""))[-_MOST:]
                return  # a run does not end because of its logs
            self._parts[source] = part
