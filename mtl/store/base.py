"""What a store promises, whichever storage is below it."""

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar, final

from mtl.errors import StoreError, Truncated
from mtl.store.traffic import Traffic

Made = TypeVar("Made")


@dataclass(frozen=True)
class Stat:
    """An object's size in bytes, its version (changes whenever the content does), and when it was written.

    That is in seconds since 1970, by the clock of what keeps the object.
    """

    size_bytes: int
    version: str
    written_s: float


@dataclass(frozen=True)
class Unfinished:
    """A write that has begun and not ended: its writer is at work, or was killed.

    Attributes:
        key: of the object that it was to be; on a disk, of the half-written file.
        size_bytes: what storage holds of it.
        written_s: when the last of that was written, like `Stat.written_s`.
        upload: S3's name for it.
    """

    key: str
    size_bytes: int
    written_s: float
    upload: str = ""


class Store(Protocol):
    """A folder of objects, local or remote. Keys are relative, with '/' between parts.

    Readers see an object whole, old or new, never a part. A store can be pickled and shared by threads and forked
    processes. Every method raises:

        StoreError     the key leaves the folder, or storage failed; may pass, unlike the next two
          NotFound     no such object or bucket; `list` and `delete` take a missing object for an empty answer
          AccessDenied the identity in use may not do this
    """

    @property
    def uri(self) -> str:
        """The address of this folder, without a trailing slash; `open_store(uri)` gives this store again."""
        ...

    def child(self, name: str) -> "Store":
        """The folder `name` below this one; it need not exist."""
        ...

    def get(self, key: str) -> bytes:
        """The whole object."""
        ...

    def get_versioned(self, key: str) -> tuple[bytes, str]:
        """The whole object and the version of just these bytes."""
        ...

    def get_range(self, key: str, offset: int, length: int, *, version: str | None = None) -> bytes | memoryview:
        """Exactly `length` bytes, at least one, from `offset` in bytes. Memory that can be written to is the caller's.

        Raises:
            StoreError: the range passes the end of the object, fewer bytes arrived, or the object no longer has
                `version` (it was rewritten).
        """
        ...

    def get_range_versioned(self, key: str, offset: int, length: int) -> tuple[bytes | memoryview, str]:
        """Like `get_range`, and the version of the object that just these bytes are of."""
        ...

    def traffic(self) -> Traffic:
        """What ranged reads of this store, its parents and children took beyond one request each, in this process."""
        ...

    def stat(self, key: str) -> Stat:
        """Size, version and time of the object."""
        ...

    def list(self, prefix: str = "") -> list[str]:
        """The keys in this folder and below that start with `prefix`, sorted by code point."""
        ...

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Those keys, and how many bytes are behind each."""
        ...

    def put(self, key: str, data: bytes) -> str:
        """Write the whole object, replacing any other; durable on return. Returns the new version."""
        ...

    def put_file(self, key: str, path: Path) -> None:
        """Write the content of the local file `path`, as `put` does.

        Raises:
            OSError: `path` can not be read.
        """
        ...

    def put_if(self, key: str, data: bytes, *, version: str | None) -> str:
        """Write the object only if it has `version` now, or, with None, only if it does not exist.

        Of several at once, one wins. An object that already holds `data` counts as written, because the answer to the
        first try may have been lost: make `data` unique to its writer (put a random token in it). A key that is
        written by this method is written by no other.

        Returns:
            The new version.

        Raises:
            Conflict: the object has another version, exists already, or is gone.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove the object; fine if there is none."""
        ...

    def unfinished(self) -> Sequence[Unfinished]:
        """What writers in this folder and below have begun and not finished; no key shows it."""
        ...

    def discard(self, unfinished: Unfinished) -> None:
        """Remove what has been written of it; fine if it is gone, or was finished meanwhile.

        A writer that is still at work fails: see to it that there is none.
        """
        ...


def check_key(folder: str, key: str) -> str:
    """`key`, if it stays inside `folder`.

    Raises:
        StoreError: it is empty or absolute, or has a part that is '.', '..' or empty.
    """
    if "\0" in key or any(part in ("", ".", "..") for part in key.split("/")):
        raise StoreError(
            f"The key '{key}' does not name an object inside {folder}.",
            got=repr(key),
            expected="a relative path with '/' between its parts, none of them '.', '..' or empty",
        )
    return key


def check_prefix(folder: str, prefix: str) -> str:
    """`prefix`, if every key that starts with it stays inside `folder`; it may be empty or end anywhere.

    Raises:
        StoreError: it is absolute or has a part that is '.', '..' or empty.
    """
    folders = prefix.rpartition("/")[0]
    if folders or prefix.startswith("/"):
        check_key(folder, folders)
    return prefix


def check_range(address: str, offset: int, length: int) -> None:
    """Refuse a range that no object can have.

    Raises:
        StoreError: `offset` is negative or `length` is not positive (both in bytes).
    """
    if offset < 0 or length < 1:
        raise StoreError(
            f"There is no such range in {address}.",
            got=f"{length} bytes from {offset}",
            expected="1 byte or more from 0 on",
        )


def short_read(address: str, offset: int, length: int, got_bytes: int | None = None) -> Truncated:
    """The error for a range of which storage gave only `got_bytes` (None: not known)."""
    return Truncated(
        f"{address} ended inside the range that was asked for.",
        got="no such range" if got_bytes is None else f"{got_bytes} bytes",
        expected=f"{length} bytes from {offset}",
        do="the object is shorter than its description says: write it again, or check that its upload finished",
    )


def rewritten(address: str, version: str, now: str = "another version") -> StoreError:
    """The error for an object that changed while it was being read by ranges."""
    return StoreError(
        f"{address} was rewritten while it was in use.",
        got=now,
        expected=f"version {version}, seen at the start",
        do="restart, so that the new content is read from its start; write new data to a new address instead",
    )


@final
class PerProcess(Generic[Made]):
    """A value made on first use, once in each process: sockets and threads do not survive a fork or a pickle.

    Args:
        make: called without arguments; must be picklable.
    """

    def __init__(self, make: Callable[[], Made]) -> None:
        self._make = make
        self._made: dict[int, Made] = {}
        self._locks: dict[int, threading.Lock] = {}

    def get(self) -> Made:
        """The value of this process."""
        pid = os.getpid()
        # One lock per process: a fork copies a lock that another thread holds, and nobody in the child would free it.
        with self._locks.setdefault(pid, threading.Lock()):
            if pid not in self._made:
                self._made[pid] = self._make()
            return self._made[pid]

    def __reduce__(self) -> tuple[type["PerProcess[Made]"], tuple[Callable[[], Made]]]:
        return PerProcess, (self._make,)
