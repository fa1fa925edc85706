"""Grain, as its tutorials have it: ArrayRecord files, a shuffled MapDataset, OpenCV, worker processes.

https://google-grain.readthedocs.io/en/latest/tutorials/dataset_basic_tutorial.html for the pipeline,
.../tutorials/data_sources/arrayrecord_data_source_tutorial.html for the files (group_size:1), and
.../tutorials/data_loader_tutorial.html for resizing by OpenCV, bilinear. Decoding is OpenCV's too.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from benchmarks.peers import BATCH, Decoder
from benchmarks.peers.decode import Ours, opencv_view
from benchmarks.peers.images import files

_FILES = 4
_LABEL = struct.Struct("<I")


class _View(grain.transforms.RandomMap):
    def random_map(self, element: bytes, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        return opencv_view(memoryview(element)[_LABEL.size :], rng), _label(element)


class _OurView(grain.transforms.Map):
    def __init__(self) -> None:
        self._view = Ours()

    def map(self, element: bytes) -> tuple[np.ndarray, int]:
        return self._view(memoryview(element)[_LABEL.size :]), _label(element)


def _label(element: bytes) -> int:
    return _LABEL.unpack_from(element)[0]


def prepare(images: Path, folder: Path) -> None:
    """ArrayRecord files with one record a group, for random access."""
    found = files(images)
    for number in range(_FILES):
        writer = ArrayRecordWriter(str(folder / f"train-{number:05d}-of-{_FILES:05d}.array_record"), "group_size:1")
        for path, label in found[number::_FILES]:
            writer.write(_LABEL.pack(label) + path.read_bytes())
        writer.close()


def batches(source: str, decoder: Decoder, workers: int) -> Iterator[tuple[Any, Any]]:
    """Endless: the data set repeats, each epoch in another order."""
    paths = [str(path) for path in sorted(Path(source).glob("*.array_record"))]
    dataset = grain.MapDataset.source(grain.sources.ArrayRecordDataSource(paths)).seed(0).shuffle().repeat()
    dataset = dataset.random_map(_View()) if decoder == "documented" else dataset.map(_OurView())
    # One thread a process: the work is decoding, and each of the processes has one core.
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=BATCH)
    prefetched = (
        dataset.to_iter_dataset(options)
        .batch(BATCH, drop_remainder=True)
        .mp_prefetch(grain.multiprocessing.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2))
    )
    yield from prefetched
