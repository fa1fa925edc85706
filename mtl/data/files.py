"""The images of a folder or of a tar archive, behind one interface."""

import bz2
import gzip
import lzma
import os
import posixpath
import tarfile
import tempfile
import weakref
import zlib
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol, final

from mtl.errors import DataError
from mtl.progress import Progress

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
SPLITS = ("train", "val", "test")

_PACKED = {b"\x1f\x8b": gzip.open, b"\xfd7zXZ\0": lzma.open, b"BZh": bz2.open}
_CHUNK_BYTES = 4 << 20


class Images(Protocol):
    """Image files by their path below `where`, with '/' between parts."""

    @property
    def where(self) -> str:
        """What to call the folder or archive in a message."""
        ...

    @property
    def paths(self) -> list[str]:
        """Every image, sorted."""
        ...

    @property
    def ignored(self) -> int:
        """How many other files there are; hidden ones do not count."""
        ...

    def __contains__(self, path: str) -> bool: ...

    def read(self, path: str) -> bytes:
        """The content of one file.

        Raises:
            DataError: it can not be read.
        """
        ...


def open_images(path: Path) -> Images:
    """The images in `path`, a folder or a tar archive (plain, or packed by gzip, xz or bzip2).

    Raises:
        DataError: it is neither, or damaged.
    """
    if path.is_dir():
        return _Folder(path)
    if path.is_file():
        return _Archive(path)
    raise DataError(f"There is nothing at {path}.", expected="a folder of images or a tar archive of one")


@final
class _Folder:
    def __init__(self, root: Path) -> None:
        self._root, self.where = root, str(root)
        found = (
            os.path.relpath(os.path.join(folder, name), root).replace(os.sep, "/")
            for folder, _, names in os.walk(root, followlinks=True)
            for name in names
        )
        self.paths, self.ignored = _images(found)

    def __contains__(self, path: str) -> bool:
        return (self._root / path).is_file()

    def read(self, path: str) -> bytes:
        try:
            return (self._root / path).read_bytes()
        except OSError as error:
            raise DataError(f"{self._root / path} can not be read: {error.strerror}.") from error


@final
class _Archive:
    """Members are found once, then read by offset: from any thread, in any order."""

    def __init__(self, path: Path) -> None:
        self.where = str(path)
        try:
            with _unpacked(path) as file:
                with tarfile.open(fileobj=file, mode="r:") as archive:
                    members = {posixpath.normpath(m.name): (m.offset_data, m.size) for m in archive if m.isreg()}
                self._fd = os.dup(file.fileno())
        except (tarfile.TarError, OSError, EOFError, lzma.LZMAError, zlib.error) as error:
            raise DataError(
                f"{path} can not be read as a tar archive: {error}",
                expected="a folder, or .tar, .tar.gz, .tar.xz or .tar.bz2",
                do="check that the file is complete",
            ) from error
        weakref.finalize(self, os.close, self._fd)
        self.paths, self.ignored = _images(members)
        self._top = _single_top(self.paths)
        self.paths = [path.removeprefix(self._top) for path in self.paths]
        self._at = {name.removeprefix(self._top): at for name, at in members.items()}

    def __contains__(self, path: str) -> bool:
        return path.removeprefix(self._top) in self._at

    def read(self, path: str) -> bytes:
        offset, size = self._at[path.removeprefix(self._top)]
        data = os.pread(self._fd, size, offset)
        if len(data) != size:
            raise DataError(f"{path} in {self.where} can not be read: the archive is cut short.")
        return data


@contextmanager
def _unpacked(path: Path) -> Generator[IO[bytes]]:
    """`path` as an uncompressed file: itself, or a temporary one without a name."""
    with path.open("rb") as raw:
        start = raw.read(6)
        raw.seek(0)
        unpack = next((unpack for magic, unpack in _PACKED.items() if start.startswith(magic)), None)
        if unpack is None:
            yield raw
            return
        with tempfile.TemporaryFile() as plain:
            with unpack(raw) as stream, Progress("unpack", path.stat().st_size / 1e6, "MB") as progress:
                while chunk := stream.read(_CHUNK_BYTES):
                    plain.write(chunk)
                    progress.update(raw.tell() / 1e6)
            plain.seek(0)
            yield plain


def _images(paths: Iterable[str]) -> tuple[list[str], int]:
    visible = [path for path in paths if not path.startswith(".") and "/." not in path]
    images = sorted(path for path in visible if path.lower().endswith(EXTENSIONS))
    return images, len(visible) - len(images)


def _single_top(paths: list[str]) -> str:
    """The folder, with its slash, that an archive wraps around its tree; empty if it wraps none."""
    tops = {path.partition("/")[0] for path in paths}
    wrapped = len(tops) == 1 and not tops & {*SPLITS} and all(path.count("/") >= 2 for path in paths)
    return f"{tops.pop()}/" if wrapped else ""
