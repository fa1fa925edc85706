"""Other clouds, for reading data sets, through pyarrow's file systems."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Never, final

import numpy as np

from mtl.errors import NotFound, StoreError
from mtl.store.base import PerProcess, Stat, Unfinished, check_key, check_prefix, check_range, rewritten, short_read
from mtl.store.os_errors import reading
from mtl.store.traffic import Traffic


@final
@dataclass(frozen=True)
class ArrowStore:
    """The folder at `uri`, any address that pyarrow.fs.FileSystem.from_uri reads. Every write raises StoreError.

    A version is size and time of change, which is all that these file systems tell.
    """

    uri: str

    _root: PerProcess[tuple[Any, str]] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_root", PerProcess(partial(_connect, self.uri)))

    def child(self, name: str) -> "ArrowStore":
        return ArrowStore(f"{self.uri}/{check_key(self.uri, name)}")

    def get(self, key: str) -> bytes:
        files, path = self._at(key)
        with reading(f"{self.uri}/{key}"), files.open_input_stream(path, compression=None) as stream:
            return stream.read()

    def get_versioned(self, key: str) -> tuple[bytes, str]:
        version = self.stat(key).version
        data = self.get(key)
        if (now := self.stat(key).version) != version:
            raise rewritten(f"{self.uri}/{key}", version, f"version {now}")
        return data, version

    def get_range(self, key: str, offset: int, length: int, *, version: str | None = None) -> memoryview:
        address = f"{self.uri}/{key}"
        check_range(address, offset, length)
        files, path = self._at(key)
        with reading(address), files.open_input_file(path) as file:
            data = np.empty(min(length, max(file.size() - offset, 0)), np.uint8).data
            if len(data):
                file.seek(offset)
                data = data[: file.readinto(data)]
        if version is not None and (now := self.stat(key).version) != version:
            raise rewritten(address, version, f"version {now}")
        if len(data) != length:
            raise short_read(address, offset, length, len(data))
        return data

    def get_range_versioned(self, key: str, offset: int, length: int) -> tuple[memoryview, str]:
        version = self.stat(key).version
        return self.get_range(key, offset, length, version=version), version

    def traffic(self) -> Traffic:
        return Traffic()

    def stat(self, key: str) -> Stat:
        files, path = self._at(key)
        with reading(f"{self.uri}/{key}"):
            info = files.get_file_info(path)
        if not info.is_file:
            raise NotFound(f"There is no object {self.uri}/{key}.", do="check the address")
        return Stat(info.size, f"{info.size}-{info.mtime_ns}", info.mtime_ns / 1e9)

    def list(self, prefix: str = "") -> list[str]:
        return list(self.sizes(prefix))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        from pyarrow.fs import FileSelector

        files, root = self._root.get()
        below = check_prefix(self.uri, prefix).rpartition("/")[0]
        with reading(self.uri):
            top = f"{root}/{below}".rstrip("/")
            found = files.get_file_info(FileSelector(top, recursive=True, allow_not_found=True))
        sizes = {info.path.removeprefix(root).lstrip("/"): info.size for info in found if info.is_file}
        return {key: sizes[key] for key in sorted(sizes) if key.startswith(prefix)}

    def put(self, key: str, data: bytes) -> str:
        self._refuse(key, data)

    def put_file(self, key: str, path: Path) -> None:
        self._refuse(key, path)

    def put_if(self, key: str, data: bytes, *, version: str | None) -> str:
        self._refuse(key, data, version)

    def delete(self, key: str) -> None:
        self._refuse(key)

    def unfinished(self) -> Sequence[Unfinished]:
        return ()  # nothing of ours writes here, and pyarrow shows no other program's

    def discard(self, unfinished: Unfinished) -> None:
        self._refuse(unfinished.key)

    def _refuse(self, key: str, *_: object) -> Never:
        raise StoreError(
            f"{self.uri}/{key} can not be written: this storage has no conditional write here.",
            got=self.uri,
            expected="a local path or s3://bucket/prefix for runs; other storage serves data sets, for reading",
            do="keep runs on local storage or S3, and copy data sets with the cloud's own tool",
        )

    def _at(self, key: str) -> tuple[Any, str]:
        files, root = self._root.get()
        return files, f"{root}/{check_key(self.uri, key)}"


def _connect(uri: str) -> tuple[Any, str]:
    import pyarrow as pa
    from pyarrow.fs import FileSystem

    try:
        files, root = FileSystem.from_uri(uri)
    except (pa.ArrowException, OSError) as error:
        raise StoreError(
            f"The storage at {uri} can not be opened.",
            got=str(error).splitlines()[0],
            do="check the address and that what its scheme needs is installed (hdfs:// needs Java)",
        ) from error
    return files, root.rstrip("/")
