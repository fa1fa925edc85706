"""A Store in memory: safe for threads, and failing on demand."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from mtl.errors import Conflict, NotFound, StoreError
from mtl.store import Stat, Traffic, Unfinished
from mtl.store.base import rewritten

T = TypeVar("T")


@dataclass
class _Shared:
    """What a store and its children have in common."""

    objects: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    writes: int = 0
    operations: list[str] = field(default_factory=list)
    fail_at: int | None = None
    fail_after: bool = False
    before: Callable[[str], None] | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)


class MemoryStore:
    """mtl.store.Store without a disk or a network.

    `fail` makes one later operation raise, before or after it took effect (a lost answer). `before` is called with
    "<operation> <key>" ahead of every operation, outside the lock, so that a test can put another writer in between.
    """

    def __init__(self, uri: str = "memory://run", shared: _Shared | None = None) -> None:
        self._uri = uri
        self._shared = shared or _Shared()
        self._prefix = ""

    @property
    def uri(self) -> str:
        return self._uri

    @property
    def operations(self) -> list[str]:
        """Every operation so far, as "<operation> <key>"."""
        return self._shared.operations

    def fail(self, nth: int, *, after: bool = False) -> None:
        """Let the `nth` operation from now, counted from 0, raise StoreError; afterwards all is well again."""
        with self._shared.lock:
            self._shared.fail_at = len(self._shared.operations) + nth
            self._shared.fail_after = after

    def heal(self) -> None:
        """Forget a failure that has not happened yet."""
        self._shared.fail_at = None

    def before(self, hook: Callable[[str], None] | None) -> None:
        """Call `hook` ahead of every operation; None to stop."""
        self._shared.before = hook

    def child(self, name: str) -> "MemoryStore":
        store = MemoryStore(f"{self._uri}/{name}", self._shared)
        store._prefix = f"{self._prefix}{name}/"
        return store

    def get(self, key: str) -> bytes:
        return self.get_versioned(key)[0]

    def get_versioned(self, key: str) -> tuple[bytes, str]:
        def run() -> tuple[bytes, str]:
            try:
                return self._shared.objects[self._prefix + key]
            except KeyError:
                raise NotFound(f"{self._uri}/{key} does not exist.") from None

        return self._operation("get", key, run)

    def get_range(self, key: str, offset: int, length: int, *, version: str | None = None) -> memoryview:
        data, current = self.get_versioned(key)
        if version not in (None, current):
            raise rewritten(f"{self._uri}/{key}", str(version), current)
        return memoryview(bytearray(data[offset : offset + length]))

    def get_range_versioned(self, key: str, offset: int, length: int) -> tuple[memoryview, str]:
        data, current = self.get_versioned(key)
        return memoryview(bytearray(data[offset : offset + length])), current

    def traffic(self) -> Traffic:
        return Traffic()

    def stat(self, key: str) -> Stat:
        data, version = self.get_versioned(key)
        return Stat(len(data), version, 0.0)

    def list(self, prefix: str = "") -> list[str]:
        return list(self.sizes(prefix))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        def run() -> dict[str, int]:
            found = sorted(key for key in self._shared.objects if key.startswith(self._prefix + prefix))
            return {key[len(self._prefix) :]: len(self._shared.objects[key][0]) for key in found}

        return self._operation("list", prefix, run)

    def put(self, key: str, data: bytes) -> str:
        return self._operation("put", key, lambda: self._write(key, data))

    def put_file(self, key: str, path: Path) -> None:
        self.put(key, path.read_bytes())

    def put_if(self, key: str, data: bytes, *, version: str | None) -> str:
        def run() -> str:
            _, current = self._shared.objects.get(self._prefix + key, (b"", None))
            if current != version:
                raise Conflict(f"{self._uri}/{key} was written by somebody else.")
            return self._write(key, data)

        return self._operation("put_if", key, run)

    def delete(self, key: str) -> None:
        def run() -> None:
            self._shared.objects.pop(self._prefix + key, None)

        self._operation("delete", key, run)

    def unfinished(self) -> Sequence[Unfinished]:
        return ()  # a write here takes no time

    def discard(self, unfinished: Unfinished) -> None:
        raise AssertionError(unfinished)

    def _write(self, key: str, data: bytes) -> str:
        self._shared.writes += 1
        version = str(self._shared.writes)
        self._shared.objects[self._prefix + key] = (bytes(data), version)
        return version

    def _operation(self, kind: str, key: str, run: Callable[[], T]) -> T:
        name = f"{kind} {self._prefix}{key}"
        if self._shared.before is not None:
            self._shared.before(name)
        with self._shared.lock:
            failing = len(self._shared.operations) == self._shared.fail_at
            self._shared.operations.append(name)
            if failing and not self._shared.fail_after:
                raise StoreError(f"{name} failed, as the test wished.")
            result = run()
            if failing:
                raise StoreError(f"{name} took effect, but its answer was lost, as the test wished.")
            return result
