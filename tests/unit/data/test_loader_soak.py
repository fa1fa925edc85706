"""A long run of tiny batches: memory stays flat, and no thread or file is left behind."""

import gc
import os
import threading
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from mtl.config import Augment
from mtl.data.loader import Loader, Target
from mtl.data.manifest import Index, Manifest
from mtl.data.order import Order
from mtl.data.reader import Reader
from mtl.data.transforms import TrainView
from mtl.store import open_store
from tests.helpers.datasets import LABELS, tiny

TARGETS = (Target("what", "object", integer=True), Target("where", "angle", integer=False, negated_by_flip="angle"))
GROWTH_BYTES = 32_000_000
PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def loader(folder: Path, batches: int, **options: Any) -> Loader:
    store = open_store(str(folder))
    index = Index.load(store, "train")
    order = Order(
        index.rows,
        fingerprint=Manifest.load(store).fingerprint,
        split="train",
        seed=0,
        lanes=4,
        block_row_groups=4,
        global_batch=16,
        keep_tail=False,
    )
    view = TrainView(Augment(size_px=8, crop="padded", crop_pad_px=1, eval_resize_px=8), seed=0)
    return Loader(Reader(store, index, tuple(LABELS)), order, view, TARGETS, range(batches), threads=1, **options)


@pytest.mark.slow
@pytest.mark.parametrize(("memory", "batches"), [("decoded", 100_000), ("encoded", 5_000), ("none", 5_000)])
def test_memory_stays_flat(tmp_path: Path, memory: str, batches: int) -> None:
    tiny(tmp_path, rows={"train": 2_000}, size_px=8, row_group_bytes=40_000, shard_bytes=200_000)
    threads, files = {*threading.enumerate()}, open_files()
    warm = 0
    samples = 0
    for number, batch in enumerate(loader(tmp_path, batches, memory=memory)):
        samples += len(batch.status)
        if number == batches // 10:
            warm = resident_bytes()
    assert samples == 16 * batches
    gc.collect()
    assert resident_bytes() - warm < GROWTH_BYTES
    assert_nothing_left(threads, files)


@pytest.mark.slow
def test_loaders_that_are_closed_early_leave_nothing(tmp_path: Path) -> None:
    tiny(tmp_path, rows={"train": 400}, size_px=8)
    threads, files = {*threading.enumerate()}, open_files()
    warm = 0
    for number in range(300):
        opened = loader(tmp_path, 50, memory=("none", "encoded", "decoded")[number % 3])
        source = iter(opened)
        assert len(list(islice(source, number % 4))) == number % 4
        opened.close()
        del opened, source
        if number == 60:
            warm = resident_bytes()
    gc.collect()
    assert_nothing_left(threads, files)
    assert resident_bytes() - warm < GROWTH_BYTES


def assert_nothing_left(threads: set[threading.Thread], files: int) -> None:
    until = time.monotonic() + 20
    while {*threading.enumerate()} - threads and time.monotonic() < until:
        time.sleep(0.01)
    assert not {*threading.enumerate()} - threads
    assert open_files() <= files
