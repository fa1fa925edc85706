"""A folder of this machine, or of a file system mounted on it."""

import fcntl
import hashlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self, final
from urllib.parse import unquote, urlsplit

import numpy as np

from mtl.errors import Conflict, NotFound, StoreError
from mtl.store.base import Stat, Unfinished, check_key, check_prefix, check_range, rewritten, short_read
from mtl.store.os_errors import reading, writing
from mtl.store.traffic import Traffic

_HIDDEN = ".mtl-"  # our own files: half-written objects and locks; never a key, never listed
_LOCK = _HIDDEN + "lock"
_STAGED = re.compile(re.escape(_HIDDEN) + "[0-9a-f]{32}")
_HASHED_BYTES = 1 << 16
_PRUNE_RACES = 100


@final
@dataclass(frozen=True)
class LocalStore:
    """Objects are plain files below `root`, an absolute path.

    A write goes to a hidden file beside its target, reaches the disk, and is renamed, so a writer killed at any moment
    leaves the old content and at most that hidden file, which `unfinished` finds.
    """

    root: Path

    @classmethod
    def at(cls, uri: str) -> Self:
        """The store at a path ('~' and relative paths are resolved now) or a file:// address.

        Raises:
            StoreError: a file:// address that names another machine.
        """
        if uri.startswith("file://"):
            parts = urlsplit(uri)
            if parts.netloc not in ("", "localhost") or not parts.path:
                raise StoreError(f"'{uri}' does not name a folder of this machine.", got=uri, expected="file:///path")
            uri = unquote(parts.path)
        return cls(Path(os.path.abspath(os.path.expanduser(uri))))

    @property
    def uri(self) -> str:
        return str(self.root)

    def child(self, name: str) -> "LocalStore":
        return LocalStore(self._path(name))

    def get(self, key: str) -> bytes:
        path = self._path(key)
        with reading(path), path.open("rb") as file:
            return file.read()

    def get_versioned(self, key: str) -> tuple[bytes, str]:
        path = self._path(key)
        with reading(path), path.open("rb") as file:
            return file.read(), _version(file)

    def get_range(self, key: str, offset: int, length: int, *, version: str | None = None) -> memoryview:
        return self._range(key, offset, length, version)[0]

    def get_range_versioned(self, key: str, offset: int, length: int) -> tuple[memoryview, str]:
        return self._range(key, offset, length, None)

    def traffic(self) -> Traffic:
        return Traffic()

    def stat(self, key: str) -> Stat:
        path = self._path(key)
        with reading(path), path.open("rb", buffering=0) as file:
            info = os.fstat(file.fileno())
            return Stat(info.st_size, _version(file), info.st_mtime)

    def list(self, prefix: str = "") -> list[str]:
        top = self.root / check_prefix(self.uri, prefix).rpartition("/")[0]
        keys = (path.as_posix() for path in self._files(top) if not path.name.startswith(_HIDDEN))
        return sorted(key for key in keys if key.startswith(prefix))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        found: dict[str, int] = {}
        for key in self.list(prefix):
            with suppress(FileNotFoundError):  # it was deleted meanwhile
                found[key] = (self.root / key).stat().st_size
        return found

    def put(self, key: str, data: bytes) -> str:
        path = self._path(key)
        with writing(path), _staged(path) as (temp, file):
            file.write(data)
            return _commit(temp, file, path)

    def put_file(self, key: str, path: Path) -> None:
        target = self._path(key)
        with path.open("rb") as source, writing(target), _staged(target) as (temp, file):
            shutil.copyfileobj(source, file, 1 << 20)
            _commit(temp, file, target)

    def put_if(self, key: str, data: bytes, *, version: str | None) -> str:
        path = self._path(key)
        with writing(path), _staged(path) as (temp, file), _locked(path.parent):
            file.write(data)
            try:
                with path.open("rb") as current:
                    held, now = current.read(), _version(current)
            except FileNotFoundError:
                held, now = None, None
            if now is not None and held == data:
                return now
            if now != version:
                raise Conflict(
                    f"{path} was changed by another writer.",
                    got="no object" if now is None else f"version {now}",
                    expected="no object" if version is None else f"version {version}",
                )
            return _commit(temp, file, path)

    def delete(self, key: str) -> None:
        self._remove(self._path(key))

    def unfinished(self) -> Sequence[Unfinished]:
        found: list[Unfinished] = []
        for path in self._files(self.root):
            if _STAGED.fullmatch(path.name):
                with suppress(NotFound), reading(self.root / path):  # its writer may be done by now
                    info = (self.root / path).stat()
                    found.append(Unfinished(path.as_posix(), info.st_size, info.st_mtime))
        return found

    def discard(self, unfinished: Unfinished) -> None:
        path = self.root / check_key(self.uri, unfinished.key)
        assert _STAGED.fullmatch(path.name), unfinished
        self._remove(path)

    def _files(self, top: Path) -> Iterator[Path]:
        """The files at and below `top`, our own ones too, relative to the root."""
        with reading(top):
            for folder, _, names in os.walk(top, onerror=_raise_unless_missing):
                below = Path(folder).relative_to(self.root)
                yield from (below / name for name in names)

    def _remove(self, path: Path) -> None:
        with writing(path), suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
            path.unlink()
        # Object storage has no empty folders, so none are left here: a person sees only what exists.
        with suppress(OSError):
            for folder in path.parents:
                if folder == self.root:
                    break
                folder.rmdir()

    def _range(self, key: str, offset: int, length: int, version: str | None) -> tuple[memoryview, str]:
        path = self._path(key)
        check_range(str(path), offset, length)
        with reading(path), path.open("rb", buffering=0) as file:
            there = max(os.fstat(file.fileno()).st_size - offset, 0)
            data, got = np.empty(min(length, there), np.uint8).data, 0
            while got < len(data) and (more := os.preadv(file.fileno(), [data[got:]], offset + got)):
                got += more
            # After the read, so that a program that writes in place meanwhile is noticed too.
            now = _version(file)
        if version not in (None, now):
            raise rewritten(str(path), str(version), f"version {now}")
        if got < length:
            raise short_read(str(path), offset, length, got)
        return data, now

    def _path(self, key: str) -> Path:
        if any(part.startswith(_HIDDEN) for part in check_key(self.uri, key).split("/")):
            raise StoreError(f"The key '{key}' is reserved.", got=key, expected=f"no part that starts with '{_HIDDEN}'")
        return self.root / key


def _version(file: BinaryIO) -> str:
    """The version of an open file's content.

    Small objects, the ones that `put_if` is for, by their content: nothing else is sure to change with it. Larger ones
    by inode, time and size: a rename over the old file can not give its inode again, and by the third write, which can,
    `_commit` has stamped a later time, in nanoseconds and not in the ticks that the kernel counts.
    """
    info = os.fstat(file.fileno())
    if info.st_size <= _HASHED_BYTES:
        return hashlib.blake2b(os.pread(file.fileno(), info.st_size, 0), digest_size=16).hexdigest()
    return f"{info.st_ino:x}-{info.st_mtime_ns:x}-{info.st_size:x}"


@contextmanager
def _staged(path: Path) -> Generator[tuple[Path, BinaryIO]]:
    """A new hidden file beside `path`, open for writing, and its own path; removed at the end unless renamed."""
    temp = path.parent / f"{_HIDDEN}{uuid.uuid4().hex}"
    with _create(temp) as file:
        try:
            yield temp, file
        finally:
            temp.unlink(missing_ok=True)


def _create(temp: Path) -> BinaryIO:
    for _ in range(_PRUNE_RACES):
        _make_folder(temp.parent)
        # A `delete` elsewhere may prune the folder in between.
        with suppress(FileNotFoundError):
            return temp.open("x+b")
    raise FileNotFoundError(2, "the folder keeps vanishing", str(temp.parent))


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        _make_folder(folder.parent)
        with suppress(FileNotFoundError):
            folder.mkdir(exist_ok=True)
            _sync_folder(folder.parent)


def _commit(temp: Path, file: BinaryIO, path: Path) -> str:
    file.flush()
    now_ns = time.time_ns()
    os.utime(file.fileno(), ns=(now_ns, now_ns))
    os.fsync(file.fileno())
    temp.replace(path)
    _sync_folder(path.parent)
    return _version(file)


def _sync_folder(folder: Path) -> None:
    entry = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(entry)
    finally:
        os.close(entry)


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    """Hold the folder's lock: between processes, and, as each caller opens the file itself, between threads."""
    with (folder / _LOCK).open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            # Closing alone would leave it to a child that was forked meanwhile and still has the file open.
            fcntl.flock(lock, fcntl.LOCK_UN)


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error
