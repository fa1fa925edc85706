"""A loader over rows that come more than once: the same samples on any number of workers, restored, freed or kept."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl.config import Augment
from mtl.data import loader as loaders
from mtl.data.batch import QUARANTINED, Batch
from mtl.data.joined import Joined
from mtl.data.loader import Loader, Target
from mtl.data.manifest import Index
from mtl.data.memory import Decoded
from mtl.data.mixture import Mixture, Source
from mtl.data.names import image_ids
from mtl.data.order import Order, Rows
from mtl.data.reader import Reader
from mtl.data.repeats import Repeats
from mtl.data.transforms import TrainView
from tests.helpers.datasets import damage, tiny
from tests.helpers.memory_store import MemoryStore
from tests.helpers.orders import Case
from tests.helpers.restore import assert_restores

TARGETS = (Target("what", "object", integer=True), Target("where", "angle", integer=False))
VIEW = TrainView(Augment(size_px=16, crop="padded", eval_resize_px=16, pixels="exact"), seed=2)
ROWS = 36


def written() -> MemoryStore:
    tiny(store := MemoryStore(), rows={"train": ROWS}, row_group_bytes=9_000)
    return store


@pytest.fixture(scope="module")
def store() -> MemoryStore:
    return written()


def index(store: MemoryStore, seed: int = 0, most: int = 4) -> Index:
    """The split with each row up to `most` times."""
    plain = Index.load(store, "train")
    times = np.random.default_rng(seed).integers(1, most + 1, ROWS).astype(np.uint8)
    repeats = Repeats.of(times, plain.rows)
    return replace(plain, rows=repeats.rows, repeats=repeats)


def order(its: Index, lanes: int = 4, block: int | None = 2, batch: int = 8) -> Order:
    rows = tuple(its.rows.tolist())
    return Case(rows=rows, fingerprint="x", seed=1, lanes=lanes, block_row_groups=block, global_batch=batch).order()


def delivered(store: MemoryStore, its: Index, by: Order, steps: range, **more: Any) -> list[Batch]:
    return list(Loader(Reader(store, its, ("object", "angle")), by, VIEW, TARGETS, steps, **more))


def content(batch: Batch) -> Counter[tuple[bytes, ...]]:
    """The samples of a batch by position, whatever their slots."""
    there = np.flatnonzero(batch.positions >= 0).tolist()
    arrays = [batch.positions, batch.images, *batch.labels.values(), batch.status]
    return Counter(tuple(values[slot].tobytes() for values in arrays) for slot in there)


def test_an_epoch_has_each_row_as_often_as_it_is_to_come(store: MemoryStore) -> None:
    its = index(store)
    by = order(its)
    plain = Reader(store, Index.load(store, "train"), ())
    ids = np.concatenate([plain.read(g).ids for g in range(len(its.rows))])
    names = image_ids(by, [(store, its)], range(by.steps))
    hashed = Counter(xxhash.xxh3_64_intdigest(name.encode()) for name in names)
    assert its.repeats is not None
    assert hashed == dict(zip(ids.tolist(), its.repeats.times.tolist(), strict=True))
    assert by.n == len(names) == its.repeats.times.sum()


def test_restored_at_every_step_it_delivers_the_rest_on_any_number_of_workers(store: MemoryStore) -> None:
    its = index(store, most=3)
    by = order(its, batch=16)

    def deliver(steps: range, world_size: int) -> dict[int, object]:
        found = {step: (0, Counter[tuple[bytes, ...]]()) for step in steps}
        for rank in range(world_size):
            for batch in delivered(store, its, by, steps, rank=rank, world_size=world_size):
                ledger, samples = found[batch.step]
                found[batch.step] = (ledger + batch.ledger) % 2**64, samples + content(batch)
        return dict(found)

    assert_restores(deliver, by.steps + 2, [1, 2, 4])


@settings(max_examples=8)
@given(
    seed=st.integers(0, 99),
    lanes=st.integers(1, 5),
    block=st.none() | st.integers(1, 3),
    prefetch_bytes=st.sampled_from([1, 2**27]),
)
def test_memory_that_is_freed_or_kept_changes_nothing(
    store: MemoryStore, seed: int, lanes: int, block: int | None, prefetch_bytes: int
) -> None:
    """Copies of an image are in several lanes and blocks: it must be there for the last of them."""
    its = index(store, seed)
    by = order(its, lanes, block, lanes * 3)
    steps = range(2 * by.steps)
    expected = [(batch.ledger, content(batch)) for batch in delivered(store, its, by, steps)]
    for memory in ("encoded", "decoded"):
        got = delivered(store, its, by, steps, memory=memory, threads=2)
        assert [(batch.ledger, content(batch)) for batch in got] == expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loaders, "_WORTH_BYTES", 0)
        got = delivered(store, its, by, steps, threads=2, prefetch_bytes=prefetch_bytes)
    assert [(batch.ledger, content(batch)) for batch in got] == expected
    assert not any(batch.bad for batch in got)


def test_an_image_is_freed_with_the_last_of_its_copies(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    freed: list[int] = []
    monkeypatch.setattr("mtl.data.reader.give_back", lambda _, size: freed.append(size))
    plain = Reader(store, Index.load(store, "train"), ()).read(0)
    group = replace(plain, address=1).repeated(np.array([0, 0, 1, 2, 2, 2]))
    sizes = [len(plain.image(row)) for row in range(3)]
    for row in (1, 5, 2, 3, 0, 4):
        assert group.image(row) == plain.image([0, 0, 1, 2, 2, 2][row])
        group.give_back(row)
    assert freed == [sizes[1], sizes[0], sizes[2]]
    with pytest.raises(AssertionError):
        group.image(5)


@pytest.mark.parametrize("memory", ["none", "encoded", "decoded"])
def test_a_bad_image_is_named_by_its_row_on_storage(memory: Any) -> None:
    damage(broken := written(), "train", 1, 2)
    its = index(broken)
    assert its.repeats is not None
    by, copies = order(its), int((its.repeats.on_storage(1) == 2).sum())
    batches = delivered(broken, its, by, range(2 * by.steps), memory=memory)
    bad = [bad for batch in batches for bad in batch.bad]
    assert [(each.shard, each.row) for each in bad] == [(its.shard_path[int(its.shard[1])], 2)] * 2 * copies
    assert sum(int((batch.status == QUARANTINED).sum()) for batch in batches) == 2 * copies


def test_a_decoded_image_is_kept_once_for_all_its_copies(store: MemoryStore) -> None:
    its = index(store)
    kept = Decoded(its, 16, {})
    assert kept.pixels.shape == (ROWS, 16, 16, 3)
    groups = np.arange(len(its.rows))
    every = Rows(np.repeat(groups, its.rows), np.concatenate([np.arange(n) for n in its.rows]))
    assert its.repeats is not None
    assert np.bincount(kept.number(every)).tolist() == its.repeats.times.tolist()


def test_a_mixture_repeats_rows_of_one_data_set_and_not_of_another(store: MemoryStore) -> None:
    readers = [Reader(store, its, ("object", "angle")) for its in (index(store), Index.load(store, "train"))]
    joined = Joined(readers, {})
    first = len(readers[0].index.rows)
    assert joined.index.images == 2 * ROWS
    assert joined.index.rows.sum() == readers[0].index.rows.sum() + ROWS
    for number in range(len(joined.index.rows)):
        reader, at = (readers[0], number) if number < first else (readers[1], number - first)
        np.testing.assert_array_equal(joined.read(number).ids, reader.read(at).ids)
        assert len(joined.read(number).ids) == joined.index.rows[number]
        last = int(joined.index.rows[number]) - 1
        assert joined.index.on_storage(number, last) == reader.index.on_storage(at, last)
    sources = [Source(reader.index.rows, "x", 1.0) for reader in readers]
    by = Mixture(sources, split="train", seed=1, lanes=4, block_row_groups=2, global_batch=8, steps=5)
    made = [list(Loader(joined, by, VIEW, TARGETS, range(8), memory=memory)) for memory in ("none", "decoded")]
    assert [batch.ledger for batch in made[0]] == [batch.ledger for batch in made[1]]
    for one, other in zip(*made, strict=True):
        np.testing.assert_array_equal(one.images, other.images)
