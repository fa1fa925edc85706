"""Ours: the training read path of mtl, as mtl.parts builds it for one worker."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import simplejpeg

from benchmarks.peers import BATCH, Decoder
from benchmarks.peers.decode import AUGMENT
from mtl.config import Augment
from mtl.config import Order as Defaults
from mtl.data.batch import Batch
from mtl.data.files import open_images
from mtl.data.loader import Loader, Target
from mtl.data.manifest import Index, Label, Manifest
from mtl.data.order import Order
from mtl.data.reader import Reader
from mtl.data.source import Example, image_folder
from mtl.data.transforms import TrainView
from mtl.data.writer import write
from mtl.store import open_store

LANES, BLOCK_ROW_GROUPS = Defaults().lanes, Defaults().block_row_groups
_EPOCHS = 1000  # more than any run here reads
_SMALL_PX, _SMALL_BATCH = 32, 256
_SMALL = Augment(
    size_px=_SMALL_PX, eval_resize_px=_SMALL_PX, crop="padded", crop_pad_px=4, flip=0.5, brightness=0.0
)  # the recipe `cifar10`


def prepare(images: Path, folder: Path, copies: int = 1) -> None:
    """A data set as jobs/prepare.py imagefolder writes it, `copies` of all images in the split train."""
    source = image_folder(open_images(images), "label")
    examples = [replace(example, id=f"{copy}/{example.id}") for copy in range(copies) for example in source.examples]
    write(open_store(str(folder)), "bench", examples, source.labels)


def prepare_small(folder: Path, count: int) -> None:
    """A data set of `count` JPEGs of CIFAR-10's size, of smooth noise."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 4, 4, 3), np.uint8)
    fine = coarse.repeat(_SMALL_PX // 4, axis=1).repeat(_SMALL_PX // 4, axis=2)
    examples = [
        Example(f"{i:06d}", "train", {"label": i % 2}, lambda i=i: simplejpeg.encode_jpeg(fine[i], 92))
        for i in range(count)
    ]
    write(open_store(str(folder)), "small", examples, {"label": Label(kind="binary")})


def batches(source: str, _decoder: Decoder, workers: int) -> Iterator[tuple[Any, Any]]:
    """Endless for all purposes here; the decoder is ours either way."""
    return ((batch.images, batch.labels["label"]) for batch in loader(source, workers))


def small_batches(source: str, workers: int) -> Iterator[tuple[Any, Any]]:
    """CIFAR-10-sized images, decoded in memory."""
    made = loader(source, workers, augment=_SMALL, batch=_SMALL_BATCH, block_row_groups=None, memory="decoded")
    return ((batch.images, batch.labels["label"]) for batch in made)


def loader(
    source: str,
    workers: int,
    *,
    start: int = 0,
    augment: Augment = AUGMENT,
    batch: int = BATCH,
    block_row_groups: int | None = BLOCK_ROW_GROUPS,
    memory: Literal["none", "decoded"] = "none",
) -> Iterator[Batch]:
    """Batches from step `start` on, as one worker with `workers` decoding threads reads them."""
    store = open_store(source)
    manifest, index = Manifest.load(store), Index.load(store, "train")
    order = Order(
        index.rows,
        fingerprint=manifest.fingerprint,
        split="train",
        seed=0,
        lanes=LANES,
        block_row_groups=block_row_groups,
        global_batch=batch,
        keep_tail=False,
    )
    return iter(
        Loader(
            Reader(store, index, ("label",)),
            order,
            TrainView(augment, seed=0),
            (Target("label", "label", integer=True),),
            range(start, _EPOCHS * order.steps),
            threads=workers,
            memory=memory,
        )
    )
