"""Images whose memory is freed as they are decoded: none is asked for again, and all are as they would be."""

from typing import Any

import numpy as np
import pytest

from mtl.config import Augment
from mtl.data import loader as loaders
from mtl.data.batch import Batch
from mtl.data.loader import Loader, Target
from mtl.data.manifest import Index
from mtl.data.mixture import AnyOrder, Mixture, Source
from mtl.data.order import Order
from mtl.data.reader import Reader, RowGroup
from mtl.data.transforms import TrainView
from tests.helpers.datasets import tiny
from tests.helpers.memory_store import MemoryStore
from tests.helpers.orders import Case

TARGETS = (Target("what", "object", integer=True), Target("where", "angle", integer=False))


@pytest.fixture(scope="module")
def reader() -> Reader:
    tiny(store := MemoryStore(), rows={"train": 60}, row_group_bytes=9_000)
    return Reader(store, Index.load(store, "train"), ("object", "angle"))


def order(reader: Reader, lanes: int, block: int | None, batch: int) -> Order:
    rows = tuple(reader.index.rows.tolist())
    return Case(
        rows=rows, fingerprint="x", seed=1, lanes=lanes, block_row_groups=block, global_batch=batch, keep_tail=False
    ).order()


def mixture(reader: Reader, steps: int) -> Mixture:
    """The data set by itself, whose epochs end in the middle of what the mixture calls one."""
    sources = (Source(reader.index.rows, "x", 1.0),)
    return Mixture(sources, split="train", seed=1, lanes=4, block_row_groups=None, global_batch=8, steps=steps)


def delivered(reader: Any, its: AnyOrder, steps: int, **parallelism: Any) -> list[Batch]:
    view = TrainView(Augment(size_px=16, crop="padded", eval_resize_px=16, pixels="exact"), seed=2)
    return list(Loader(reader, its, view, TARGETS, range(steps), **parallelism))


@pytest.mark.parametrize("prefetch_bytes", [1, 2**27])
@pytest.mark.parametrize(("lanes", "block", "batch"), [(1, None, 4), (4, None, 8), (4, 1, 4), (3, 2, 12)])
def test_an_order(
    reader: Reader, lanes: int, block: int | None, batch: int, prefetch_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the next epoch wants an image while this one still needs others of its row group."""
    its = order(reader, lanes, block, batch)
    kept = delivered(reader, its, 4 * its.steps, prefetch_bytes=prefetch_bytes)
    monkeypatch.setattr(loaders, "_WORTH_BYTES", 0)
    assert_equal(delivered(reader, its, 4 * its.steps, threads=2, prefetch_bytes=prefetch_bytes), kept)


@pytest.mark.parametrize("steps", [3, 7, 19])
def test_a_mixture(reader: Reader, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    its = mixture(reader, steps)
    kept = delivered(reader, its, 25)
    monkeypatch.setattr(loaders, "_WORTH_BYTES", 0)
    assert_equal(delivered(reader, its, 25), kept)


def test_each_image_is_given_back_once_and_none_without_need(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[int, int]] = []
    monkeypatch.setattr(RowGroup, "give_back", lambda group, row: given.append((group.number, row)))
    its = order(reader, 4, 2, 4)
    delivered(reader, its, its.steps)
    assert not given  # small ones share their pages
    monkeypatch.setattr(loaders, "_WORTH_BYTES", 0)
    for memory in ("encoded", "decoded"):
        delivered(reader, its, its.steps, memory=memory)
        assert not given
    delivered(reader, its, its.steps)
    assert len(given) == len({*given}) == its.samples


def test_an_image_that_was_given_back_is_not_there(reader: Reader) -> None:
    group = reader.read(0)
    other = bytes(group.image(1))
    group.give_back(0)
    assert bytes(group.image(1)) == other
    with pytest.raises(AssertionError):
        group.image(0)


def assert_equal(got: list[Batch], expected: list[Batch]) -> None:
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert one.ledger == other.ledger
        assert not one.bad
        np.testing.assert_array_equal(one.images, other.images)
        for task, values in one.labels.items():
            np.testing.assert_array_equal(values, other.labels[task])
