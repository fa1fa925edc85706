"""Row groups from storage: one ranged GET each, verified, decoded with the cached footer."""

import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import astuple, dataclass, field, replace
from typing import final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from mtl.data.columns import LabelArray, array
from mtl.data.manifest import FOOTERS, Index
from mtl.data.pages import give_back
from mtl.data.plain import locate
from mtl.data.seekable import Seekable
from mtl.errors import DataError
from mtl.store import Store
from mtl.store.base import rewritten


@final
@dataclass(frozen=True)
class RowGroup:
    """A decoded row group of n rows; images stay encoded.

    `image(i)` is a view into `data`, from `first[i]` to `stop[i]`, int64 [n] each.
    `labels[column]` is int64 [n] with -1 for missing, or float32 [n] with NaN; lists of w entries are [n, w]: see
    mtl/data/columns.py. `ids` are xxh3-64 of the image ids, uint64 [n].
    `address` is where `data` lies, if this row group alone uses that memory.
    `origin` tells copies of a row: rows with the same number, one after another, int64 [n]; None without any.
    """

    number: int
    data: memoryview
    first: npt.NDArray[np.int64]
    stop: npt.NDArray[np.int64]
    ids: npt.NDArray[np.uint64]
    labels: dict[str, LabelArray]
    address: int | None = None
    origin: npt.NDArray[np.int64] | None = None
    _gone: set[int] = field(default_factory=set[int])

    def image(self, row: int) -> memoryview:
        """The encoded bytes of `row`, which has not been given back."""
        assert row not in self._gone
        return self.data[self.first[row] : self.stop[row]]

    def give_back(self, row: int) -> None:
        """Free the memory of the image of `row`, for which nobody asks again: with the last of its copies."""
        if self.address is None:
            return
        self._gone.add(row)
        if self.origin is not None:
            origin = self.origin[row]
            copies = range(*(int(np.searchsorted(self.origin, origin + end)) for end in (0, 1)))
            if not self._gone.issuperset(copies):
                return
        give_back(self.address + int(self.first[row]), int(self.stop[row] - self.first[row]))

    def repeated(self, rows: npt.NDArray[np.int64]) -> "RowGroup":
        """The same memory with other rows, of which number i is row `rows[i]` of this one: int64 [n], ascending."""
        labels: dict[str, LabelArray] = {name: values[rows] for name, values in self.labels.items()}
        first, stop, ids = self.first[rows], self.stop[rows], self.ids[rows]
        return replace(self, first=first, stop=stop, ids=ids, labels=labels, origin=rows, _gone=set[int]())


@final
@dataclass(frozen=True)
class ReadStats:
    """What one reader did so far in this process; seconds are sums over threads.

    requests            ranged reads of the store, `rereads` and all below included
    bytes               read, and used
    rereads             reads made again because the bytes had another checksum
    retries, throttles, hedges
                        see mtl.store.Traffic; those of all readers that share this one's store
    storage_s, parse_s  waiting for storage; verifying and decoding
    """

    requests: int
    bytes: int
    rereads: int
    retries: int
    throttles: int
    hedges: int
    storage_s: float
    parse_s: float

    def since(self, before: "ReadStats") -> "ReadStats":
        """What happened after `before`, an earlier snapshot of the same reader."""
        now = zip(astuple(self), astuple(before), strict=True)
        return ReadStats(*(after - earlier for after, earlier in now))


@final
class Reader:
    """Reads row groups of one split. Thread-safe.

    The version of a shard is the one that is seen first; what comes later of another version is an error.

    Args:
        store: the data set's folder.
        index: the split's index.
        columns: label columns to read beside the images.
        widths: entries of those columns that hold lists.
    """

    def __init__(
        self, store: Store, index: Index, columns: tuple[str, ...], widths: Mapping[str, int] | None = None
    ) -> None:
        self._store, self.index, self._columns = store, index, columns
        self.uri = store.uri
        self._widths = widths or {}
        self._footers: dict[int, Future[pq.FileMetaData]] = {}
        self._versions: dict[str, str] = {}
        self._lock = threading.Lock()
        self._reads = self._bytes = self._rereads = 0
        self._storage_s = self._parse_s = 0.0

    def read(self, number: int) -> RowGroup:
        """Fetch and decode row group `number`, with its rows as often as the index says.

        Raises:
            StoreError: storage failed, or the shard was rewritten meanwhile.
            DataError: the bytes are not those that were written, or not the expected columns.
        """
        index = self.index
        shard, ordinal = int(index.shard[number]), int(index.ordinal[number])
        name = f"Row group {ordinal} of {self._store.uri}/{index.shard_path[shard]}"
        data = self._verified(number, name)
        source = _Window(memoryview(data), int(index.offset[number]), int(index.shard_bytes[shard]))
        try:
            footer = self._footer(shard)
            began = time.perf_counter()
            file = pq.ParquetFile(source, metadata=footer)
            images = _images(data, footer.row_group(ordinal), int(index.offset[number]))
            columns = ["image_id", *self._columns] if images else ["image", "image_id", *self._columns]
            table = file.read_row_group(ordinal, columns=columns)
            labels = {name: array(table[name], self._widths.get(name)) for name in self._columns}
            ids = table["image_id"].to_pylist()
            group = RowGroup(
                number,
                *(images or _decoded(table["image"])),
                ids=np.fromiter((xxhash.xxh3_64_intdigest(name.encode()) for name in ids), np.uint64, len(ids)),
                labels=labels,
                address=_own(data) if images else None,
            )
        except (pa.ArrowException, OSError, KeyError) as error:
            raise DataError(
                f"{name} can not be decoded: {error}",
                do="index, footers and shards contradict each other: write it again with jobs/prepare.py --overwrite",
            ) from error
        if index.repeats is not None:
            group = group.repeated(index.repeats.on_storage(number))
        self._count(parse_s=time.perf_counter() - began)
        return group

    def stats(self) -> ReadStats:
        """What this reader did so far in this process."""
        traffic = self._store.traffic()
        with self._lock:
            return ReadStats(
                requests=self._reads + traffic.retries + traffic.hedges,
                bytes=self._bytes,
                rereads=self._rereads,
                retries=traffic.retries,
                throttles=traffic.throttles,
                hedges=traffic.hedges,
                storage_s=self._storage_s,
                parse_s=self._parse_s,
            )

    def _verified(self, number: int, name: str) -> bytes | memoryview:
        index = self.index
        path, expected = index.shard_path[int(index.shard[number])], int(index.checksum[number])
        for again in (False, True):
            data = self._get(path, int(index.offset[number]), int(index.length[number]))
            began = time.perf_counter()
            found = xxhash.xxh3_64_intdigest(data)
            self._count(parse_s=time.perf_counter() - began, rereads=int(again))
            if found == expected:
                return data
        # Once may be a fault of the transfer, of which TCP's checksum misses some.
        raise DataError(
            f"{name} is not what was written.",
            got="bytes with another checksum, twice",
            expected="the xxh3 recorded in index.parquet",
            do="the shard was changed or damaged: write it again with jobs/prepare.py --overwrite",
        )

    def _get(self, path: str, offset: int, length: int) -> bytes | memoryview:
        began = time.perf_counter()
        pinned = self._versions.get(path)
        if pinned is not None:
            data = self._store.get_range(path, offset, length, version=pinned)
        else:
            data, version = self._store.get_range_versioned(path, offset, length)
            with self._lock:
                pinned = self._versions.setdefault(path, version)
            if version != pinned:
                raise rewritten(f"{self._store.uri}/{path}", pinned, f"version {version}")
        self._count(reads=1, bytes=len(data), storage_s=time.perf_counter() - began)
        return data

    def _count(
        self, *, reads: int = 0, bytes: int = 0, rereads: int = 0, storage_s: float = 0.0, parse_s: float = 0.0
    ) -> None:
        with self._lock:
            self._reads += reads
            self._bytes += bytes
            self._rereads += rereads
            self._storage_s += storage_s
            self._parse_s += parse_s

    def _footer(self, shard: int) -> pq.FileMetaData:
        """The footer of a shard, fetched by the first thread that needs it while the others wait."""
        with self._lock:
            first = shard not in self._footers
            footer = self._footers.setdefault(shard, Future())
        if first:
            try:
                data = self._get(FOOTERS, int(self.index.footer_offset[shard]), int(self.index.footer_length[shard]))
                footer.set_result(pq.read_metadata(pa.BufferReader(data)))
            except BaseException as error:
                with self._lock:
                    del self._footers[shard]  # the next read tries again
                footer.set_exception(error)
        return footer.result()


Images = tuple[memoryview, npt.NDArray[np.int64], npt.NDArray[np.int64]]


def _images(data: bytes | memoryview, group: pq.RowGroupMetaData, offset: int) -> Images | None:
    """The images of a row group of which `data` are all bytes, from `offset` of the shard on: where they were read to.

    None if pyarrow has to decode them.
    """
    columns = map(group.column, range(group.num_columns))
    column = {column.path_in_schema: column for column in columns}["image"]
    begin = column.data_page_offset - offset
    if column.compression != "UNCOMPRESSED" or column.has_dictionary_page or begin < 0:
        return None
    found = locate(memoryview(data)[begin : begin + column.total_compressed_size], group.num_rows)
    return (memoryview(data), found[0] + begin, found[0] + begin + found[1]) if found else None


def _decoded(column: pa.ChunkedArray) -> Images:
    """The images by pyarrow, in memory of its own."""
    images = column.combine_chunks()
    assert not isinstance(images, pa.ChunkedArray)  # which takes more than 2 GB
    _, offsets, data = images.buffers()
    edges = np.frombuffer(offsets, np.int32)[images.offset : images.offset + len(images) + 1].astype(np.int64)
    return memoryview(data), edges[:-1], edges[1:]


def _own(data: bytes | memoryview) -> int | None:
    """Where `data` lies, if it may be written to; what may not be could be somebody else's too."""
    if not isinstance(data, memoryview) or data.readonly:
        return None
    return np.frombuffer(data, np.uint8).ctypes.data


@final
class _Window(Seekable):
    """A file of which only [offset, offset + len(data)) is held."""

    def __init__(self, data: memoryview, offset: int, size: int) -> None:
        super().__init__(size)
        self._data, self._offset = data, offset

    def read(self, size: int = -1) -> memoryview:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A view rather than bytes: pyarrow takes any buffer, and copies none."""
        start = self.at - self._offset
        stop = start + size if size >= 0 else len(self._data)
        if start < 0 or stop > len(self._data):
            raise OSError(f"a read of [{self.at}, {self.at + size}) leaves the row group that was fetched")
        self.at += stop - start
        return self._data[start:stop]
