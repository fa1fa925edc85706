"""The description of a data set: what it holds, and where every row group lies.

    <data set>/manifest.json    this module's Manifest; written last, so a data set without one is not finished
               index.parquet    one row per row group: see Index
               footers.bin      the shards' Parquet footers (metadata, its length, PAR1), end to end, read by range
               shards/*.parquet

A row group is the unit of read: `Index` gives its byte range, so one ranged GET fetches it, and the cached footer
lets pyarrow decode it without seeing the rest of the file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from mtl.data.repeats import Repeats
from mtl.errors import DataError, NotFound
from mtl.store import Store

FORMAT_VERSION = 2
"""The newest that this code reads. Version 2 has the kinds in WIDE, and `groups`; what needs neither is version 1."""

MANIFEST, INDEX, FOOTERS = "manifest.json", "index.parquet", "footers.bin"

LabelKind = Literal["class", "binary", "real", "angle", "set", "vector", "soft"]

WIDE: tuple[LabelKind, ...] = ("set", "vector", "soft")
"""Kinds whose values are lists; `classes` names their entries."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Label(_Strict):
    """One label column.

    kind `class`: int32 ids into `classes`; `binary`: int32 0 or 1; `real`: float32; `angle`: float32 radians in
    [0, 2 pi), clockwise from upright. Lists: `set`: int32 ids of the classes that are present, and -1 - id of those of
    which it is not known, all others being absent; `vector`: float32, as many as `classes` has names, NaN for an
    unknown one; `soft`: float32, the probability of each class. A null is a missing label.
    """

    kind: LabelKind
    classes: tuple[str, ...] | None = None  # names by id, or of a list's entries


class LabelCount(_Strict):
    """What one split holds of one label.

    Of kind `vector`, lows, highs and known are by component; of kind `set`, histogram and known are by class: rows that
    have the class, rows of which it is known whether they do.
    """

    valid: int
    nulls: int
    low: float | None = None  # smallest and largest valid value; ids for kinds `class` and `binary`
    high: float | None = None
    histogram: tuple[int, ...] | None = None  # rows per class id, for kinds `class`, `binary` and `set`
    lows: tuple[float | None, ...] | None = None  # None where no row knows the component
    highs: tuple[float | None, ...] | None = None
    known: tuple[int, ...] | None = None


class Split(_Strict):
    """One split: `rows` rows in `row_groups` row groups, `bytes` on storage."""

    rows: int
    row_groups: int
    bytes: int
    labels: dict[str, LabelCount]


class Statistics(_Strict):
    """Per-channel mean and standard deviation of RGB in [0, 1], over `images` images of the train split."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    images: int


class Manifest(_Strict):
    """manifest.json. `fingerprint` covers images and row layout, not labels: adding a label keeps the order.

    groups[fine][coarse] gives for each class id of the label `fine` the one of `coarse` that all images of that class
    have, -1 where none has both. It is there for each pair of class labels of which one so follows from the other.
    """

    format_version: int = FORMAT_VERSION
    name: str
    labels: dict[str, Label]
    splits: dict[str, Split]
    statistics: Statistics
    image_px: tuple[int, int]  # median height and width over the train split
    fingerprint: str
    source: dict[str, str] = {}  # how it was made: for people
    groups: dict[str, dict[str, tuple[int, ...]]] = {}

    @classmethod
    def load(cls, store: Store) -> Self:
        """Read and check the manifest of the data set at `store`.

        Raises:
            DataError: there is none, or it was written by a newer version.
            StoreError: storage can not be read.
        """
        try:
            raw = store.get(MANIFEST)
        except NotFound as error:
            raise DataError(
                f"There is no data set at {store.uri}.",
                got=error.what,
                expected=f"a folder that holds {MANIFEST}, {INDEX}, {FOOTERS} and shards/",
                do="check the address, or write the data set with jobs/prepare.py (its --help shows how)",
            ) from error
        try:
            version = _Version.model_validate_json(raw).format_version
        except ValueError as error:
            raise _damaged(store, error) from error
        if version > FORMAT_VERSION:
            raise DataError(
                f"The data set at {store.uri} was written by a newer mtl.",
                got=f"format_version {version}",
                expected=f"at most {FORMAT_VERSION}",
                do="upgrade mtl, or write the data set again with this version",
            )
        try:
            return cls.model_validate_json(raw)
        except ValueError as error:
            raise _damaged(store, error) from error

    @property
    def widths(self) -> dict[str, int]:
        """Entries of each label whose values are lists."""
        return {name: len(label.classes or ()) for name, label in self.labels.items() if label.kind in WIDE}

    def split(self, name: str) -> Split:
        """The split called `name`.

        Raises:
            DataError: it does not exist or has no rows.
        """
        split = self.splits.get(name)
        if split is None or split.rows == 0:
            raise DataError(
                f"The data set {self.name} has no rows in split '{name}'.",
                got="an empty split" if split else f"splits {', '.join(self.splits)}",
                expected=f"at least one row in '{name}'",
                do="write the data set with that split (jobs/prepare.py --help: splits)",
            )
        return split


class _Version(BaseModel):
    format_version: int


def _damaged(store: Store, error: ValueError) -> DataError:
    return DataError(
        f"{store.uri}/{MANIFEST} is damaged.",
        got=" ".join(str(error).split()),
        expected="the manifest that jobs/prepare.py wrote",
        do="write the data set again: jobs/prepare.py --overwrite",
    )


@dataclass(frozen=True)
class Index:
    """The row groups of one split, as parallel arrays of length R, in storage order.

    Byte range of row group i: [offset[i], offset[i] + length[i]) of shard `shard_path[shard[i]]`; `checksum[i]` is the
    xxh3-64 of those bytes. `ordinal[i]` is its number within the shard. Per shard (length S): size in bytes and the
    byte range of its footer within footers.bin.

    With `repeats`, `rows` counts copies: row groups are to be read with some of their rows more than once.
    """

    rows: npt.NDArray[np.int64]
    shard: npt.NDArray[np.int64]
    ordinal: npt.NDArray[np.int64]
    offset: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    checksum: npt.NDArray[np.uint64]
    shard_path: tuple[str, ...]
    shard_bytes: npt.NDArray[np.int64]
    footer_offset: npt.NDArray[np.int64]
    footer_length: npt.NDArray[np.int64]
    repeats: Repeats | None = None

    @property
    def images(self) -> int:
        """How many rows are on storage."""
        return int(self.rows.sum()) if self.repeats is None else len(self.repeats.times)

    def on_storage(self, number: int, row: int) -> int:
        """Which row of row group `number` on storage its row `row`, as it is read, is."""
        return row if self.repeats is None else int(self.repeats.on_storage(number)[row])

    @classmethod
    def load(cls, store: Store, split: str) -> Self:
        """Read the index of `split`; raises what `load_each` does."""
        return cls.load_each(store, (split,))[split]

    @classmethod
    def load_each(cls, store: Store, splits: Sequence[str]) -> dict[str, Self]:
        """Read the indexes of these splits at once; the rows of each shard are contiguous and in order of `ordinal`.

        Raises:
            DataError: it is damaged.
            StoreError: storage can not be read.
        """
        try:
            # Piece by piece, and names as numbers: read at once, ten million row groups take 3.4 GB on the way.
            file = pq.ParquetFile(pa.BufferReader(store.get(INDEX)), read_dictionary=["split", "shard"])
            wanted: dict[str, list[pa.Table]] = {split: [] for split in splits}
            for number in range(file.num_row_groups):
                piece = file.read_row_group(number, use_threads=False).select(INDEX_SCHEMA.names)
                for split, found in wanted.items():
                    found.append(piece.filter(pc.field("split") == split))
            tables = {split: pa.concat_tables(found) for split, found in wanted.items()}
        except (pa.ArrowException, OSError, KeyError) as error:
            raise DataError(
                f"{store.uri}/{INDEX} is damaged.",
                got=" ".join(str(error).split()),
                expected="the table that jobs/prepare.py wrote",
                do="write the data set again: jobs/prepare.py --overwrite",
            ) from error
        return {split: cls._of(table) for split, table in tables.items()}

    @classmethod
    def _of(cls, table: pa.Table) -> Self:
        names = table["shard"].unify_dictionaries().combine_chunks()
        name = names.indices.to_numpy()
        begins = np.diff(name, prepend=-1) != 0
        at = pa.array(np.flatnonzero(begins))
        return cls(
            rows=table["rows"].to_numpy(),
            shard=np.cumsum(begins) - 1,
            ordinal=table["ordinal"].to_numpy(),
            offset=table["offset"].to_numpy(),
            length=table["length"].to_numpy(),
            checksum=table["checksum"].to_numpy(),
            shard_path=tuple(names.take(at).to_pylist()),
            shard_bytes=table["shard_bytes"].take(at).to_numpy(),
            footer_offset=table["footer_offset"].take(at).to_numpy(),
            footer_length=table["footer_length"].take(at).to_numpy(),
        )


INDEX_SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("shard", pa.string()),  # path below the data set, shards/<split>-00000-of-00004.parquet
        ("ordinal", pa.int64()),
        ("rows", pa.int64()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("checksum", pa.uint64()),
        ("shard_bytes", pa.int64()),
        ("footer_offset", pa.int64()),
        ("footer_length", pa.int64()),
    ]
)
"""index.parquet: one row per row group, sorted by (split, shard, ordinal)."""
