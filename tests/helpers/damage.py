"""Damage to a finished data set that its checksums do not show: images that are what was written, and do not decode."""

from collections.abc import Collection
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from mtl.data.manifest import INDEX


def spoil(path: Path, ids: Collection[str]) -> None:
    """Make the images called `ids` of the data set at `path` undecodable."""
    rows = pq.read_table(path / INDEX).to_pylist()
    for row in rows:
        file = path / row["shard"]
        group = pq.ParquetFile(file).read_row_group(row["ordinal"], columns=["image", "image_id"]).to_pylist()
        data = bytearray(file.read_bytes())
        for example in group:
            if example["image_id"] in ids:
                at = data.index(example["image"], row["offset"])
                data[at + 2 : at + len(example["image"])] = bytes(len(example["image"]) - 2)
        file.write_bytes(data)
        row["checksum"] = xxhash.xxh3_64_intdigest(data[row["offset"] : row["offset"] + row["length"]])
    pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(path / INDEX)), path / INDEX)
