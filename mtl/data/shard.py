"""One shard: examples to a Parquet file, and everything that the data set's index and manifest must know about it."""

import io
import math
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, final

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from pydantic import BaseModel, ConfigDict

from mtl.data.counts import count
from mtl.data.example import Example
from mtl.data.image import BadImage, Pixels
from mtl.data.labels import Value
from mtl.data.manifest import WIDE, Label, LabelCount
from mtl.data.plan import Layout, Shard, stored, whole
from mtl.errors import DataError

_TAIL_BYTES = 8  # a Parquet file ends with the length of its footer and the letters PAR1


class RowGroupRange(BaseModel):
    """A row group: its number of rows, the byte range of all its columns, and the xxh3-64 of those bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: int
    offset: int
    length: int
    checksum: int


class Part(BaseModel):
    """What is kept of a shard once it is written.

    Attributes:
        digest: xxh3-128 of image bytes, image ids and row layout.
        footer: the file's last bytes, from the Parquet metadata on.
        labels: counts by label.
        heights, widths: number of images by size in pixels.
        sampled: number of images in the two sums.
        means, squares: sums over those images of the mean and mean square of R, G and B in [0, 1].
        skipped: damaged images that were left out, with the reason.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_bytes="base64", val_json_bytes="base64")

    plan: str
    row_groups: tuple[RowGroupRange, ...]
    shard_bytes: int
    digest: str
    footer: bytes
    labels: dict[str, LabelCount]
    heights: dict[int, int]
    widths: dict[int, int]
    sampled: int
    means: tuple[float, float, float]
    squares: tuple[float, float, float]
    skipped: tuple[str, ...]

    @property
    def rows(self) -> int:
        """How many images the shard holds."""
        return sum(group.rows for group in self.row_groups)


def schema(labels: dict[str, Label]) -> pa.Schema:
    """The columns of every shard."""
    return pa.schema(
        [
            ("image", pa.binary()),
            ("image_id", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            *((name, _type(label)) for name, label in labels.items()),
        ]
    )


def _type(label: Label) -> pa.DataType:
    if label.kind == "set":
        return pa.list_(pa.int32())
    if label.kind in WIDE:
        return pa.list_(pa.float32())
    return pa.int32() if whole(label) else pa.float32()


def write_shard(
    path: Path,
    shard: Shard,
    labels: dict[str, Label],
    layout: Layout,
    *,
    plan: str,
    skip_bad: bool,
    tick: Callable[[int], None],
) -> Part:
    """Write `shard` to a new Parquet file at `path`.

    Args:
        plan: recorded in the part.
        skip_bad: leave damaged images out instead of raising.
        tick: called now and then with the number of examples done since; what it raises ends the writing.

    Raises:
        DataError: an image is damaged or can not be read, or there is no room at `path`.
    """
    tally = _Tally()
    group = _Group(labels)
    done = 0
    try:
        # No pyarrow schema inside: readers must not meet extension types. No statistics: the order is random.
        with pq.ParquetWriter(
            path,
            schema(labels),
            compression="NONE",
            use_dictionary=False,
            write_statistics=False,
            store_schema=False,
        ) as writer:
            for number, example in enumerate(shard.examples):
                try:
                    data, pixels = stored(example, layout.short_side_px)
                except BadImage as error:
                    if not skip_bad:
                        raise DataError(
                            f"Image {example.id} is damaged.",
                            got=error,
                            expected="an image that decodes completely",
                            do="mend or remove it, or leave such images out with --skip-bad",
                        ) from error
                    tally.skipped.append(f"{example.id}: {error}")
                    continue
                group.add(example, data, pixels)
                tally.add(pixels, shard.sampled(number))
                if group.size_bytes >= layout.row_group_bytes:
                    group.flush(writer, tally)
                    tick(number + 1 - done)
                    done = number + 1
            group.flush(writer, tally)
            tick(len(shard.examples) - done)
        with path.open("rb") as file:
            groups, footer = _ranges(file)
            size = file.seek(0, io.SEEK_END)
    except OSError as error:
        raise DataError(
            f"A shard can not be written to {path.parent}: {error.strerror or error}.",
            do="make room there, or set TMPDIR to a folder with room for one shard per worker",
        ) from error
    return Part(
        plan=plan,
        row_groups=groups,
        shard_bytes=size,
        digest=tally.digest.hexdigest(),
        footer=footer,
        labels={name: count(labels[name], values) for name, values in group.columns.items()},
        heights=dict(tally.heights),
        widths=dict(tally.widths),
        sampled=tally.sampled,
        means=_rgb(tally.means),
        squares=_rgb(tally.squares),
        skipped=tuple(tally.skipped),
    )


@final
class _Group:
    """Rows that wait to become a row group; `columns` keeps the labels of all rows so far."""

    def __init__(self, labels: dict[str, Label]) -> None:
        self.columns: dict[str, list[Value]] = {name: [] for name in labels}
        self._schema = schema(labels)
        self._clear()

    def _clear(self) -> None:
        self.size_bytes = 0
        self._images: list[bytes] = []
        self._ids: list[str] = []
        self._widths: list[int] = []
        self._heights: list[int] = []

    def add(self, example: Example, data: bytes, pixels: Pixels) -> None:
        self.size_bytes += len(data)
        self._images.append(data)
        self._ids.append(example.id)
        self._heights.append(pixels.shape[0])
        self._widths.append(pixels.shape[1])
        for name, values in self.columns.items():
            values.append(example.labels[name])

    def flush(self, writer: pq.ParquetWriter, tally: "_Tally") -> None:
        n = len(self._ids)
        if not n:
            return
        columns = [self._images, self._ids, self._widths, self._heights]
        columns += [values[-n:] for values in self.columns.values()]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, self._schema, strict=True)]
        writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema), row_group_size=n)
        for name, data in zip(self._ids, self._images, strict=True):
            tally.digest.update(f"{name}\0".encode() + xxhash.xxh3_64_digest(data))
        tally.digest.update(struct.pack("<Q", n))
        self._clear()


@final
@dataclass
class _Tally:
    digest: xxhash.xxh3_128 = field(default_factory=xxhash.xxh3_128)
    heights: Counter[int] = field(default_factory=Counter[int])
    widths: Counter[int] = field(default_factory=Counter[int])
    sampled: int = 0
    means: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))
    squares: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))
    skipped: list[str] = field(default_factory=list[str])

    def add(self, pixels: Pixels, sampled: bool) -> None:
        self.heights[pixels.shape[0]] += 1
        self.widths[pixels.shape[1]] += 1
        if sampled:
            mean, std = (statistic[:, 0] / 255 for statistic in cv2.meanStdDev(pixels))
            self.sampled += 1
            self.means += mean
            self.squares += std**2 + mean**2


def _ranges(file: BinaryIO) -> tuple[tuple[RowGroupRange, ...], bytes]:
    """The row groups of a Parquet file, and its footer."""
    metadata = pq.read_metadata(file)
    groups: list[RowGroupRange] = []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        columns = [group.column(i) for i in range(group.num_columns)]
        starts = [column.dictionary_page_offset or column.data_page_offset for column in columns]
        offset = min(starts)
        ends = (start + column.total_compressed_size for start, column in zip(starts, columns, strict=True))
        length = max(ends) - offset
        file.seek(offset)
        checksum = xxhash.xxh3_64_intdigest(file.read(length))
        groups.append(RowGroupRange(rows=group.num_rows, offset=offset, length=length, checksum=checksum))
    file.seek(-_TAIL_BYTES, io.SEEK_END)
    (length,) = struct.unpack("<I", file.read(4))
    file.seek(-_TAIL_BYTES - length, io.SEEK_END)
    return tuple(groups), file.read()


def _rgb(sums: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in sums)
    assert math.isfinite(red + green + blue)
    return red, green, blue
