"""Tiny data sets with a label of every kind, some missing, and images that show what their labels say."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg
import xxhash

from mtl.data.keyed import key, uniforms
from mtl.data.manifest import INDEX, Index, Label, Manifest
from mtl.data.plan import Layout
from mtl.data.reader import Reader
from mtl.data.source import Example, Value
from mtl.data.writer import write
from mtl.store import Store, open_store

LABELS = {
    "object": Label(kind="class", classes=("red", "green", "blue")),
    "kind": Label(kind="binary"),
    "angle": Label(kind="angle"),
    "amount": Label(kind="real"),
}
"""Colour of the disc; whether it lies on a light ground; where it lies, clockwise from upright; slope of the light
from left to right, in [-1, 1]. A mirror negates the last two."""

ROWS = {"train": 96, "val": 24, "test": 24}


def tiny(
    path: Path | Store,
    *,
    rows: Mapping[str, int] = ROWS,
    size_px: int = 16,
    row_group_bytes: int = 6_000,
    shard_bytes: int = 24_000,
    seed: int = 0,
    missing: float = 0.1,
    name: str = "tiny",
) -> Manifest:
    """Write a data set to `path`, a folder or any store.

    Args:
        rows: by split. An image of 16 px takes about 700 bytes.
        seed: of images, labels, and the order on storage.
        missing: share of labels that are null, each by itself.
    """
    store = open_store(str(path)) if isinstance(path, Path) else path
    examples = [
        tiny_example(split, number, size_px=size_px, seed=seed, missing=missing)
        for split, n in rows.items()
        for number in range(n)
    ]
    layout = Layout(seed=seed, shard_bytes=shard_bytes, row_group_bytes=row_group_bytes)
    return write(store, name, examples, LABELS, layout, workers=1)


def tiny_example(split: str, number: int, *, size_px: int = 16, seed: int = 0, missing: float = 0.1) -> Example:
    """Example `number` of a split; its id is "<split>/<number>"."""
    draws = uniforms(key("tiny", seed, split), np.array([number]), 2 * len(LABELS))[0].tolist()
    labels: dict[str, Value] = {
        "object": int(3 * draws[0]),
        "kind": int(2 * draws[1]),
        "angle": float(np.float32(2 * math.pi * draws[2] * 0.999)),
        "amount": float(np.float32(2 * draws[3] - 1)),
    }
    image = draw(labels, size_px)
    shown = {name: None if lost < missing else labels[name] for name, lost in zip(LABELS, draws[4:], strict=True)}
    data = simplejpeg.encode_jpeg(image, quality=95, colorsubsampling="444")
    return Example(f"{split}/{number}", split, shown, lambda: data)


def draw(labels: Mapping[str, Value], size_px: int) -> npt.NDArray[np.uint8]:
    """The image that shows `labels`: uint8 [size_px, size_px, 3]."""
    thing, ground, angle, slope = (labels[name] for name in LABELS)
    assert thing is not None
    assert ground is not None
    assert angle is not None
    assert slope is not None
    at = (np.arange(size_px) + 0.5) / size_px * 2 - 1
    x, y = at[None, :], at[:, None]
    image = np.full((size_px, size_px, 3), 170.0 if ground else 60.0)
    image += 40 * slope * x[..., None]
    disc = (x - 0.5 * math.sin(angle)) ** 2 + (y + 0.5 * math.cos(angle)) ** 2 < 0.4**2
    image[disc] = np.where(np.arange(3) == thing, 255.0, 0.0)
    return np.rint(image).clip(0, 255).astype(np.uint8)


def damage(store: Store, split: str, group: int, row: int) -> None:
    """Cut the end off one image, as if it had been written so: the checksum is right, the image is not."""
    index = Index.load(store, split)
    image = bytes(Reader(store, index, ()).read(group).image(row))
    path, offset = index.shard_path[int(index.shard[group])], int(index.offset[group])
    shard = store.get(path)
    at = shard.index(image, offset)
    lost = 60
    stop = at + len(image)
    shard = shard[: stop - lost] + bytes(lost) + shard[stop:]
    store.put(path, shard)

    table = pq.read_table(pa.BufferReader(store.get(INDEX)))
    rows = table.to_pylist()
    found = next(r for r in rows if (r["shard"], r["ordinal"]) == (path, int(index.ordinal[group])))
    found["checksum"] = xxhash.xxh3_64_intdigest(shard[offset : offset + found["length"]])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), sink)
    store.put(INDEX, sink.getvalue().to_pybytes())
