"""A tiny data set with labels that are lists, and classes in groups."""

import math
from pathlib import Path

import numpy as np
import simplejpeg

from mtl.data.example import Example
from mtl.data.labels import Value
from mtl.data.manifest import Label, Manifest
from mtl.data.plan import Layout
from mtl.data.writer import write
from mtl.store import Store, open_store

ANIMALS = ("cat", "dog", "owl")
LABELS = {
    "seen": Label(kind="set", classes=ANIMALS),
    "at": Label(kind="vector", classes=("x", "y")),
    "votes": Label(kind="soft", classes=ANIMALS),
    "fine": Label(kind="class", classes=("a", "b", "c", "d")),
    "coarse": Label(kind="class", classes=("left", "right")),
    "smiles": Label(kind="binary"),
    "young": Label(kind="binary"),
}
GROUPS = (0, 0, 1, 1)


def values(number: int) -> dict[str, Value]:
    """The labels of example `number`; every fifth has none, in another column each time."""
    draws = np.random.default_rng(number)
    fine = int(draws.integers(4))
    votes = draws.dirichlet([1, 1, 1]).tolist()
    seen = [-1 - i if draws.random() < 0.2 else i for i in range(3) if draws.random() < 0.6]
    made: dict[str, Value] = {
        "seen": tuple(seen),
        "at": (float(np.float32(draws.uniform(-1, 1))), math.nan if number % 3 == 0 else 5.0 + number % 7),
        "votes": tuple(votes),
        "fine": fine,
        "coarse": GROUPS[fine],
        "smiles": int(draws.integers(2)),
        "young": int(draws.integers(2)),
    }
    lost = [*made][number % len(made)]
    return {**made, **({lost: None} if number % 5 == 0 else {})}


def wide(where: Path | Store) -> Manifest:
    """Write it: 64 images to train on, 24 each for val and test."""
    store = open_store(str(where)) if isinstance(where, Path) else where
    examples = [
        Example(f"{split}/{number}", split, values(number), lambda number=number: jpeg(number))
        for split, n in {"train": 64, "val": 24, "test": 24}.items()
        for number in range(n)
    ]
    return write(store, "wide", examples, LABELS, Layout(shard_bytes=24_000, row_group_bytes=6_000), workers=1)


def jpeg(number: int) -> bytes:
    """The image of example `number`."""
    pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)
    return simplejpeg.encode_jpeg(pixels, quality=90, colorsubsampling="444")
