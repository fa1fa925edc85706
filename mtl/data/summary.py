"""From the parts of all shards to the data set's index, footers and manifest."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from mtl.data.manifest import INDEX_SCHEMA, WIDE, Label, LabelCount, Manifest, Split, Statistics
from mtl.data.plan import Shard
from mtl.data.shard import Part
from mtl.errors import DataError

Written: TypeAlias = tuple[Shard, Part]


def build_index(written: Sequence[Written]) -> tuple[bytes, bytes]:
    """The contents of index.parquet, sorted by (split, shard, ordinal), and of footers.bin."""
    footers = bytearray()
    rows: list[tuple[object, ...]] = []
    for shard, part in written:
        at = part.shard_bytes, len(footers), len(part.footer)
        for ordinal, group in enumerate(part.row_groups):
            rows.append((shard.split, shard.path, ordinal, group.rows, group.offset, group.length, group.checksum, *at))
        footers += part.footer
    columns = zip(*sorted(rows, key=lambda row: row[:3]), strict=True)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, INDEX_SCHEMA, strict=True)]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_arrays(arrays, schema=INDEX_SCHEMA), sink, compression="zstd")
    return sink.getvalue().to_pybytes(), bytes(footers)


def build_manifest(
    name: str,
    labels: dict[str, Label],
    written: Sequence[Written],
    source: dict[str, str],
    groups: dict[str, dict[str, tuple[int, ...]]],
) -> Manifest:
    """The manifest of the data set `name`.

    Raises:
        DataError: no image of the train split is left.
    """
    train = [part for shard, part in written if shard.split == "train"]
    if not train:
        raise DataError("Every image of the train split is damaged.", do="look at one of them with another program")
    return Manifest(
        format_version=2 if groups or any(label.kind in WIDE for label in labels.values()) else 1,
        name=name,
        labels=labels,
        splits={split: _split(split, written) for split in dict.fromkeys(shard.split for shard, _ in written)},
        statistics=_statistics(train),
        image_px=(_median(part.heights for part in train), _median(part.widths for part in train)),
        fingerprint=_fingerprint(written),
        source=source,
        groups=groups,
    )


def _split(name: str, written: Iterable[Written]) -> Split:
    parts = [part for shard, part in written if shard.split == name]
    return Split(
        rows=sum(part.rows for part in parts),
        row_groups=sum(len(part.row_groups) for part in parts),
        bytes=sum(part.shard_bytes for part in parts),
        labels={label: _merged([part.labels[label] for part in parts]) for label in parts[0].labels},
    )


def _merged(counts: Sequence[LabelCount]) -> LabelCount:
    return LabelCount(
        valid=sum(count.valid for count in counts),
        nulls=sum(count.nulls for count in counts),
        low=min((count.low for count in counts if count.low is not None), default=None),
        high=max((count.high for count in counts if count.high is not None), default=None),
        histogram=_summed([count.histogram for count in counts]),
        lows=_ends([count.lows for count in counts], min),
        highs=_ends([count.highs for count in counts], max),
        known=_summed([count.known for count in counts]),
    )


def _summed(rows: Iterable[tuple[int, ...] | None]) -> tuple[int, ...] | None:
    there = [row for row in rows if row is not None]
    return tuple(int(n) for n in np.sum(there, axis=0)) if there else None


def _ends(
    rows: Iterable[tuple[float | None, ...] | None], end: Callable[[list[float]], float]
) -> tuple[float | None, ...] | None:
    there = [row for row in rows if row is not None]
    known = [[value for value in column if value is not None] for column in zip(*there, strict=True)]
    return tuple(end(values) if values else None for values in known) if there else None


def _statistics(train: Sequence[Part]) -> Statistics:
    """Every sampled image counts the same, whatever its size: so it is in training, where all are cropped to one."""
    images = sum(part.sampled for part in train)
    means = np.sum([part.means for part in train], axis=0) / max(1, images)
    stds = np.sqrt(np.maximum(0, np.sum([part.squares for part in train], axis=0) / max(1, images) - means**2))
    (r, g, b), (sr, sg, sb) = means.tolist(), stds.tolist()
    return Statistics(mean=(r, g, b), std=(sr, sg, sb), images=images)


def _median(sizes: Iterable[Mapping[int, int]]) -> int:
    counts: Counter[int] = Counter()
    for part in sizes:
        counts.update(part)
    return int(np.median(np.repeat([*counts.keys()], [*counts.values()])))


def _fingerprint(written: Iterable[Written]) -> str:
    digest = xxhash.xxh3_128(b"mtl data set 1\n")  # version of the layout of images; no later one changed it
    for shard, part in written:
        digest.update(f"{shard.path} {[group.rows for group in part.row_groups]} {part.digest}\n".encode())
    return digest.hexdigest()
