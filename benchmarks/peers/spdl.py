"""SPDL, as its ImageNet example has it: files are put together to batches, and threads read and decode whole batches.

https://github.com/facebookresearch/spdl/blob/main/examples/imagenet_classification.py (`get_pipeline`). The functions
are OpenCV's, which https://facebookresearch.github.io/spdl/0.0.8/faq.html names as one that releases the GIL; spdl.io,
which the example calls, decodes by FFmpeg and took more CPU time on these images.
"""

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from spdl.pipeline import PipelineBuilder

from benchmarks.peers import BATCH, SIZE, Decoder
from benchmarks.peers.decode import Ours, opencv_view
from benchmarks.peers.images import files


def batches(source: str, decoder: Decoder, workers: int) -> Iterator[tuple[Any, Any]]:
    """Endless epochs, each in another order."""
    ours, generator = Ours(), np.random.default_rng()

    def decode(batch: list[tuple[Path, int]]) -> tuple[Any, list[int]]:
        images = np.empty((len(batch), SIZE, SIZE, 3), np.uint8)
        for at, (path, _) in enumerate(batch):
            data = path.read_bytes()
            images[at] = opencv_view(data, generator) if decoder == "documented" else ours(data)
        return images, [label for _, label in batch]

    pipeline = (
        PipelineBuilder()
        .add_source(_epochs(files(Path(source))))
        .aggregate(BATCH, drop_last=True)
        .pipe(decode, concurrency=workers)
        .add_sink(2 * workers)
        .build(num_threads=workers)
    )
    with pipeline.auto_stop():
        yield from pipeline


def _epochs(found: list[tuple[Path, int]]) -> Iterator[tuple[Path, int]]:
    for epoch in itertools.count():
        yield from random.Random(epoch).sample(found, len(found))
