"""Row groups from storage: one ranged GET each, verified, decoded with the cached footer."""

import io
import threading
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from mtl.data.manifest import FOOTERS, Index
from mtl.errors import DataError
from mtl.store import Store


@final
@dataclass(frozen=True)
class RowGroup:
    """A decoded row group of n rows; images stay encoded.

    `image(i)` is a view into `data`; `labels[column]` is int64 [n] with -1 for missing, or float32 [n] with NaN.
    `ids` are xxh3-64 of the image ids, uint64 [n].
    """

    number: int
    data: memoryview
    offsets: npt.NDArray[np.int32]
    ids: npt.NDArray[np.uint64]
    labels: dict[str, npt.NDArray[np.int64] | npt.NDArray[np.float32]]

    def image(self, row: int) -> memoryview:
        """The encoded bytes of `row`."""
        return self.data[self.offsets[row] : self.offsets[row + 1]]


@final
class Reader:
    """Reads row groups of one split. Thread-safe.

    Args:
        store: the data set's folder.
        index: the split's index.
        columns: label columns to read beside the images.
    """

    def __init__(self, store: Store, index: Index, columns: tuple[str, ...]) -> None:
        self._store, self.index, self._columns = store, index, columns
        self._footers: dict[int, pq.FileMetaData] = {}
        self._lock = threading.Lock()

    def read(self, number: int) -> RowGroup:
        """Fetch and decode row group `number`.

        Raises:
            StoreError: storage failed.
            DataError: the bytes are not those that were written, or not the expected columns.
        """
        index = self.index
        shard = int(index.shard[number])
        path, offset, length = index.shard_path[shard], int(index.offset[number]), int(index.length[number])
        name = f"Row group {index.ordinal[number]} of {self._store.uri}/{path}"
        data = self._store.get_range(path, offset, length)
        if xxhash.xxh3_64_intdigest(data) != int(index.checksum[number]):
            raise DataError(
                f"{name} is not what was written.",
                got="bytes with another checksum",
                expected="the xxh3 recorded in index.parquet",
                do="the shard was changed or damaged: write it again with jobs/prepare.py --overwrite",
            )
        source = _Window(data, offset, int(index.shard_bytes[shard]))
        try:
            file = pq.ParquetFile(source, metadata=self._footer(shard))
            table = file.read_row_group(int(index.ordinal[number]), columns=["image", "image_id", *self._columns])
            return _row_group(number, table, self._columns)
        except (pa.ArrowException, OSError, KeyError) as error:
            raise DataError(
                f"{name} can not be decoded: {error}",
                do="index, footers and shards contradict each other: write it again with jobs/prepare.py --overwrite",
            ) from error

    def _footer(self, shard: int) -> pq.FileMetaData:
        with self._lock:
            footer = self._footers.get(shard)
        if footer is None:
            offset, length = int(self.index.footer_offset[shard]), int(self.index.footer_length[shard])
            footer = pq.read_metadata(pa.BufferReader(self._store.get_range(FOOTERS, offset, length)))
            with self._lock:
                self._footers[shard] = footer
        return footer


def _row_group(number: int, table: pa.Table, columns: tuple[str, ...]) -> RowGroup:
    images = table["image"].combine_chunks()
    assert not isinstance(images, pa.ChunkedArray)  # which takes more than 2 GB
    _, offsets, data = images.buffers()
    first = images.offset
    ids = table["image_id"].to_pylist()
    labels: dict[str, npt.NDArray[np.int64] | npt.NDArray[np.float32]] = {}
    for column in columns:
        values = table[column]
        if pa.types.is_floating(values.type):
            labels[column] = values.cast(pa.float32()).fill_null(float("nan")).to_numpy()
        else:
            labels[column] = values.cast(pa.int64()).fill_null(-1).to_numpy()
    return RowGroup(
        number=number,
        data=memoryview(data),
        offsets=np.frombuffer(offsets, np.int32)[first : first + len(images) + 1],
        ids=np.fromiter((xxhash.xxh3_64_intdigest(name.encode()) for name in ids), np.uint64, len(ids)),
        labels=labels,
    )


@final
class _Window(io.RawIOBase):
    """A file of `size` bytes of which only [offset, offset + len(data)) is held."""

    def __init__(self, data: bytes, offset: int, size: int) -> None:
        super().__init__()
        self._data, self._offset, self._size, self._at = data, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        start = self._at - self._offset
        stop = start + size if size >= 0 else len(self._data)
        if start < 0 or stop > len(self._data):
            raise OSError(f"a read of [{self._at}, {self._at + size}) leaves the row group that was fetched")
        self._at += stop - start
        return self._data[start:stop]
