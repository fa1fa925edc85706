"""The loader: the same samples with the same pixels for every number of workers, threads and restarts."""

import gc
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl.config import Augment
from mtl.data.batch import EMPTY, OK, QUARANTINED, Batch, ledger
from mtl.data.footprint import split_prefetch
from mtl.data.image import decode
from mtl.data.keyed import permutation
from mtl.data.loader import Loader, Target
from mtl.data.manifest import Index, Manifest
from mtl.data.order import Order, slots
from mtl.data.reader import Reader, RowGroup
from mtl.data.transforms import U8, Draws, EvalView, TrainView, View
from mtl.errors import DataError, StoreError
from tests.helpers.corpus import corpus
from tests.helpers.datasets import LABELS, damage, tiny
from tests.helpers.memory_store import MemoryStore
from tests.helpers.restore import Deliver, assert_restores

TARGETS = (
    Target("what", "object", integer=True),
    Target("light", "kind", integer=True),
    Target("where", "angle", integer=False, negated_by_flip="angle"),
    Target("slope", "amount", integer=False, negated_by_flip="number"),
    Target("raw_where", "angle", integer=False),
    Target("raw_slope", "amount", integer=False),
)
CROPS = {
    "none": Augment(size_px=16, crop="none", brightness=0.3, eval_resize_px=16, pixels="exact"),
    "padded": Augment(size_px=16, crop="padded", contrast=0.2, eval_resize_px=16, pixels="exact"),
    "resized": Augment(size_px=8, crop="resized", saturation=0.5, eval_resize_px=8, pixels="exact"),
}
ROWS, PATIENCE_S = 75, 20


@dataclass(frozen=True)
class Setup:
    """A data set, an order and a view of it."""

    store: MemoryStore
    view: View
    lanes: int = 4
    block_row_groups: int | None = 2
    global_batch: int = 8
    keep_tail: bool = True
    shuffle: bool = True
    index: Index = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", Index.load(self.store, "train"))

    @property
    def order(self) -> Order:
        return Order(
            self.index.rows,
            fingerprint=Manifest.load(self.store).fingerprint,
            split="train",
            seed=3,
            lanes=self.lanes,
            block_row_groups=self.block_row_groups,
            global_batch=self.global_batch,
            keep_tail=self.keep_tail,
            shuffle=self.shuffle,
        )

    @property
    def reader(self) -> Reader:
        return Reader(self.store, self.index, tuple(LABELS))

    def loader(self, steps: range, rank: int = 0, world_size: int = 1, **parallelism: Any) -> Loader:
        return Loader(
            self.reader, self.order, self.view, TARGETS, steps, rank=rank, world_size=world_size, **parallelism
        )


Sample = tuple[bytes, ...]


def samples(setup: Setup, steps: range, world_size: int = 1, **parallelism: Any) -> tuple[dict[int, Sample], list[int]]:
    """Everything delivered, by step * G + place in the global batch; and the ledger of each step."""
    order, found, ledgers = setup.order, dict[int, Sample](), [0] * len(steps)
    for rank in range(world_size):
        batches = list(setup.loader(steps, rank, world_size, **parallelism))
        assert [batch.step for batch in batches] == [*steps]
        for at, batch in enumerate(batches):
            epoch, number = divmod(batch.step, order.steps)
            assert batch.epoch == epoch
            held = slots(order, number, rank, world_size)
            assert (batch.status[held < 0] == EMPTY).all()
            assert (batch.status[held >= 0] != EMPTY).all()
            assert not batch.images[held < 0].any()
            for slot in np.flatnonzero(held >= 0):
                place = batch.step * order.global_batch + int(held[slot]) - number * order.global_batch
                assert place not in found
                found[place] = content(batch, int(slot))
            ledgers[at] = (ledgers[at] + batch.ledger) % 2**64
    return found, ledgers


def by_step(setup: Setup) -> Deliver:
    """For `assert_restores`: the samples of each step by their place, and the step's ledger."""
    size = setup.order.global_batch

    def deliver(steps: range, world_size: int) -> dict[int, object]:
        found, ledgers = samples(setup, steps, world_size)
        parts = ({place: s for place, s in found.items() if place // size == step} for step in steps)
        return dict(zip(steps, zip(ledgers, parts, strict=True), strict=True))

    return deliver


def content(batch: Batch, slot: int) -> Sample:
    labels = (values[slot].tobytes() for values in batch.labels.values())
    return batch.images[slot].tobytes(), batch.colour[slot].tobytes(), batch.status[slot].tobytes(), *labels


@pytest.fixture(scope="module")
def store() -> MemoryStore:
    store = MemoryStore()
    tiny(store, rows={"train": ROWS}, missing=0.2)
    return store


@pytest.fixture(params=[*CROPS])
def setup(request: pytest.FixtureRequest, store: MemoryStore) -> Setup:
    return Setup(store, TrainView(CROPS[request.param], seed=5))


@pytest.fixture
def plain(store: MemoryStore) -> Setup:
    """Nothing random but the order and the mirror."""
    return Setup(
        store, TrainView(Augment(size_px=16, crop="none", brightness=0, eval_resize_px=16, pixels="exact"), seed=5)
    )


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = {*threading.enumerate()}
    yield
    eventually(lambda: not new_threads(before))


def new_threads(before: set[threading.Thread]) -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("mtl-")} - before


def eventually(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.001)


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_the_number_of_workers_changes_nothing(setup: Setup, world_size: int) -> None:
    steps = range(2 * setup.order.steps)
    assert samples(setup, steps, world_size) == samples(setup, steps)


@settings(max_examples=15)
@given(
    lanes=st.integers(1, 6),
    per_lane=st.integers(1, 4),
    block_row_groups=st.none() | st.integers(1, 4),
    keep_tail=st.booleans(),
    data=st.data(),
)
def test_any_order_on_any_number_of_workers(
    store: MemoryStore, lanes: int, per_lane: int, block_row_groups: int | None, keep_tail: bool, data: st.DataObject
) -> None:
    view = TrainView(CROPS["padded"], seed=0)
    setup = Setup(store, view, lanes, block_row_groups, lanes * per_lane, keep_tail)
    steps = setup.order.steps
    start = data.draw(st.integers(0, steps))
    chosen = range(start, data.draw(st.integers(start, 2 * steps)))
    world_size = data.draw(st.integers(1, lanes))
    found = samples(setup, chosen, world_size, threads=2, prefetch_batches=2)
    assert found == samples(setup, chosen)


@pytest.mark.parametrize("world_size", [1, 3])
def test_restored_at_any_step_it_delivers_the_rest(plain: Setup, world_size: int) -> None:
    assert_restores(by_step(plain), 2 * plain.order.steps + 1, [world_size])


@pytest.mark.parametrize(
    "parallelism",
    [
        {"threads": 3, "io_threads": 1, "prefetch_batches": 1},
        {"threads": 1, "io_threads": 3, "prefetch_batches": 7},
        {"threads": 2, "prefetch_batches": 100},
        {"threads": 2, "prefetch_bytes": 1},
        {"threads": 2, "memory": "encoded"},
    ],
)
def test_parallelism_changes_nothing(setup: Setup, parallelism: dict[str, Any]) -> None:
    steps = range(1, setup.order.steps + 2)
    assert samples(setup, steps, **parallelism) == samples(setup, steps, threads=1, io_threads=1)


@pytest.mark.parametrize("crop", ["none", "padded", "evaluation"])
@pytest.mark.parametrize("world_size", [1, 3])
def test_decoded_memory_changes_nothing(store: MemoryStore, crop: str, world_size: int) -> None:
    view = EvalView(CROPS["resized"]) if crop == "evaluation" else TrainView(CROPS[crop], seed=5)
    setup = Setup(store, view, keep_tail=False)
    steps = range(3 * setup.order.steps)
    kept = samples(setup, steps, world_size, threads=2, memory="decoded")
    assert kept == samples(setup, steps)


@pytest.mark.parametrize("memory", ["encoded", "decoded"])
def test_what_is_in_memory_is_read_once(plain: Setup, memory: str) -> None:
    watched = Watched(plain)
    reads = Counter[str]()

    def counting(fetch: Callable[..., Any]) -> Callable[..., Any]:
        def counted(path: str, offset: int, length: int, **version: str) -> Any:
            reads[f"{path} {offset}"] += path.startswith("shards/")
            return fetch(path, offset, length, **version)

        return counted

    with pytest.MonkeyPatch.context() as patch:
        for name in ("get_range", "get_range_versioned"):
            patch.setattr(plain.store, name, counting(getattr(plain.store, name)))
        steps = range(4 * plain.order.steps)
        assert len(list(watched.loader(steps, memory=memory, prefetch_batches=1, prefetch_bytes=1))) == len(steps)
    groups = len(plain.index.rows)
    # A block that is read ahead across the end of an epoch may be of rows still on their way.
    assert reads.total() <= groups * (1 if memory == "encoded" else 2)
    if memory == "decoded":
        assert watched.rendered <= ROWS + 2 * plain.global_batch


def test_a_damaged_image_stays_quarantined_in_memory() -> None:
    tiny(store := MemoryStore(), rows={"train": 40}, missing=0)
    damage(store, "train", 1, 2)
    setup = Setup(store, TrainView(CROPS["padded"], seed=1))
    steps = range(3 * setup.order.steps)

    def bad(memory: str) -> list[tuple[int, int, int, str]]:
        batches = setup.loader(steps, memory=memory)
        return [(batch.step, one.position, one.row, one.reason) for batch in batches for one in batch.bad]

    assert bad("decoded") == bad("none")
    assert len(bad("none")) == 3
    assert samples(setup, steps, memory="decoded") == samples(setup, steps)


class Shelf:
    """Row groups of given images, as a reader."""

    def __init__(self, images: list[bytes], index: Index) -> None:
        self.index = index
        edges = np.concatenate([[0], np.cumsum([len(image) for image in images])]).astype(np.int64)
        n = len(images)
        labels = {"object": np.ones(n, np.int64), "kind": np.ones(n, np.int64)}
        reals = {"angle": np.ones(n, np.float32), "amount": np.ones(n, np.float32)}
        ids = np.arange(n, dtype=np.uint64)
        self._group = RowGroup(0, memoryview(b"".join(images)), edges[:-1], edges[1:], ids, {**labels, **reals})

    def read(self, number: int) -> RowGroup:
        return self._group


@pytest.mark.parametrize("memory", ["none", "decoded"])
@pytest.mark.parametrize("crop", ["none", "padded", "resized"])
def test_the_corpus_is_delivered_or_quarantined(store: MemoryStore, crop: str, memory: str) -> None:
    if crop == "resized" and memory == "decoded":
        return
    cases, full = corpus(), Index.load(store, "train")
    n = len(cases)
    one = {name: getattr(full, name)[:1] for name in ("shard", "ordinal", "offset", "length", "checksum")}
    index = replace(full, rows=np.array([n]), **one)
    order = Order(
        index.rows, fingerprint="x", split="train", seed=0, lanes=2, block_row_groups=1, global_batch=8, keep_tail=True
    )
    view = TrainView(Augment(size_px=16, crop=crop, eval_resize_px=16), 0)
    shelf = Shelf([case.data for case in cases], index)
    loader = Loader(shelf, order, view, TARGETS, range(2 * order.steps), threads=2, memory=memory)  # type: ignore[arg-type]
    outcome, reasons = Counter[tuple[int, bool]](), dict[int, str]()
    for batch in loader:
        positions = slots(order, batch.step % order.steps, 0, 1)
        rows = order.epoch(batch.epoch).at(positions[positions >= 0]).row
        status = batch.status[positions >= 0]
        outcome.update(zip(rows.tolist(), (status == OK).tolist(), strict=True))
        reasons |= {bad.row: bad.reason for bad in batch.bad}
        refused = batch.status == QUARANTINED
        assert not batch.images[refused].any()
        assert (batch.labels["what"][refused] == -1).all()
        assert (batch.labels["what"][batch.status == OK] == 1).all()
    assert outcome == {(row, case.reason is None): 2 for row, case in enumerate(cases)}
    assert reasons.keys() == {row for row, case in enumerate(cases) if case.reason is not None}


@given(st.integers(1, 10**9), st.integers(1, 50), st.integers(1, 10**8))
def test_the_budget_is_split_between_batches_and_row_groups(budget: int, most: int, batch: int) -> None:
    batches, rest = split_prefetch(budget, most, batch)
    assert 1 <= batches <= most
    assert batches == 1 or batches * batch <= budget / 2
    assert rest == max(budget - batches * batch, 0)
    assert batches == most or (batches + 1) * batch > budget / 2


@pytest.mark.parametrize("budget", [1, 9_000, 30_000])
def test_bytes_read_ahead_stay_within_the_budget(plain: Setup, budget: int) -> None:
    setup = Setup(plain.store, plain.view, lanes=2, block_row_groups=2, global_batch=4)
    watched, sizes = Watched(setup), setup.index.length
    largest_block = 2 * int(np.sort(sizes)[-2:].sum())
    for batch in watched.loader(range(3 * setup.order.steps), prefetch_batches=1, prefetch_bytes=budget):
        current = 0
        for lane in range(2):
            plan = setup.order.epoch(batch.epoch).lanes[lane]
            index = min((batch.step % setup.order.steps + 1) * 2, len(plan)) - 1
            current += int(sizes[plan.block(int(plan.block_of(np.array([index]))[0])).groups].sum())
        held = sum(int(sizes[number]) for number in [*watched.alive.keys()])
        # Of the batch ahead, lanes may have gone on to their next blocks, which are then the current ones.
        assert held <= 2 * current + max(budget, largest_block) + largest_block


def test_a_restart_reads_only_what_is_still_needed(plain: Setup) -> None:
    setup = Setup(plain.store, plain.view, lanes=1, block_row_groups=None, global_batch=8, shuffle=False)
    watched = Watched(setup)
    steps = setup.order.steps
    list(watched.loader(range(steps - 1, steps)))
    assert len(watched.read_order) < len(setup.index.rows) / 2


def test_an_epoch_holds_every_row_with_its_labels(plain: Setup) -> None:
    """Against the reader and the order by themselves: pixels, mirrored or not, and labels."""
    order, reader, groups = plain.order, plain.reader, dict[int, RowGroup]()
    seen, mirrored, missing = set[tuple[int, int]](), 0, dict.fromkeys(LABELS, 0)
    for batch in plain.loader(range(order.steps)):
        positions = slots(order, batch.step, 0, 1)
        rows = order.epoch(0).at(positions[positions >= 0])
        for slot, group, row in zip(
            np.flatnonzero(positions >= 0), rows.group.tolist(), rows.row.tolist(), strict=True
        ):
            seen.add((group, row))
            stored = groups.setdefault(group, reader.read(group))
            pixels, labels = decode(stored.image(row)), {name: v[row] for name, v in stored.labels.items()}
            flipped = not np.array_equal(batch.images[slot], pixels)
            np.testing.assert_array_equal(batch.images[slot], pixels[:, ::-1] if flipped else pixels)
            mirrored += flipped
            got = {task: values[slot] for task, values in batch.labels.items()}
            assert got["what"] == labels["object"]
            assert got["light"] == labels["kind"]
            np.testing.assert_equal(got["raw_where"], labels["angle"])
            np.testing.assert_equal(got["raw_slope"], labels["amount"])
            np.testing.assert_equal(got["slope"], -labels["amount"] if flipped else labels["amount"])
            turned = np.mod(-labels["angle"], np.float32(2 * np.pi)) if flipped else labels["angle"]
            np.testing.assert_equal(got["where"], turned)
            for name, value in labels.items():
                missing[name] += bool(value == -1 if name in ("object", "kind") else np.isnan(value))
    assert len(seen) == ROWS
    assert ROWS / 4 < mirrored < 3 * ROWS / 4
    counts = Manifest.load(plain.store).splits["train"].labels
    assert missing == {name: count.nulls for name, count in counts.items()}
    assert all(missing.values())


def test_shapes_and_types_of_a_batch(setup: Setup) -> None:
    (batch,) = setup.loader(range(1), rank=2, world_size=3)
    assert (batch.images.shape, batch.images.dtype) == ((4, setup.view.size_px, setup.view.size_px, 3), np.uint8)
    assert {task: (v.shape, v.dtype) for task, v in batch.labels.items()} == {
        target.task: ((4,), np.int64 if target.integer else np.float32) for target in TARGETS
    }
    assert (batch.colour.shape, batch.colour.dtype) == ((4, 3), np.float32)
    assert batch.status.tolist() == [OK, OK, EMPTY, EMPTY]
    assert (batch.colour[2:] == 1).all()
    assert (batch.labels["what"][2:] == -1).all()
    assert np.isnan(batch.labels["where"][2:]).all()


def test_epochs_are_augmented_differently(setup: Setup) -> None:
    """Each row has other pixels in the next epoch, unless the mirror fell the same."""
    order = setup.order
    by_row: dict[tuple[int, int], set[bytes]] = {}
    for batch in setup.loader(range(4 * order.steps)):
        positions = slots(order, batch.step % order.steps, 0, 1)
        rows = order.epoch(batch.epoch).at(positions[positions >= 0])
        for slot, pair in zip(np.flatnonzero(positions >= 0), zip(rows.group, rows.row, strict=True), strict=True):
            by_row.setdefault(pair, set()).add(batch.images[slot].tobytes())
    assert np.mean([len(pixels) for pixels in by_row.values()]) > 1.5


def test_evaluation_is_in_storage_order_without_augmentation(store: MemoryStore) -> None:
    setup = Setup(store, EvalView(CROPS["none"]), lanes=1, shuffle=False)
    reader = setup.reader
    stored = [
        decode(group.image(row))
        for group in map(reader.read, range(len(setup.index.rows)))
        for row in range(len(group.ids))
    ]
    steps = setup.order.steps
    batches = list(setup.loader(range(steps)))
    images = np.concatenate([batch.images[batch.status == OK] for batch in batches])
    np.testing.assert_array_equal(images, np.stack(stored))
    assert all((batch.colour == 1).all() for batch in batches)
    assert sum(int((batch.status == OK).sum()) for batch in batches) == ROWS


def test_fewer_rows_than_lanes() -> None:
    store = MemoryStore()
    tiny(store, rows={"train": 3})
    setup = Setup(store, TrainView(CROPS["none"], 0), lanes=5, global_batch=10)
    assert setup.order.steps == 1
    for world_size in (1, 2, 5):
        found, _ = samples(setup, range(3), world_size)
        assert len(found) == 9


def test_nothing_to_deliver(plain: Setup) -> None:
    assert list(plain.loader(range(7, 7))) == []
    tiny(store := MemoryStore(), rows={"train": 3})
    dropped = Setup(store, plain.view, keep_tail=False)
    assert dropped.order.steps == 0
    assert list(dropped.loader(range(0))) == []


def test_a_damaged_image_keeps_its_position() -> None:
    tiny(store := MemoryStore(), rows={"train": 40}, missing=0)
    setup = Setup(store, TrainView(CROPS["padded"], seed=1))
    order = setup.order
    steps = range(order.steps)
    sound, ledgers = samples(setup, steps)
    group, row = 1, 2
    damage(store, "train", group, row)
    setup = Setup(store, setup.view)
    found, its_ledgers = samples(setup, steps, world_size=2)
    changed = [place for place in sound if sound[place] != found[place]]
    assert len(changed) == 1
    (position,) = changed
    rows = order.epoch(0).at(np.array([position]))
    assert (int(rows.group[0]), int(rows.row[0])) == (group, row)
    assert [a == b for a, b in zip(ledgers, its_ledgers, strict=True)].count(False) == 1
    for batch in setup.loader(steps):
        if batch.step != position // order.global_batch:
            assert not batch.bad
            assert (batch.status == OK).all()
            continue
        (slot,) = np.flatnonzero(batch.status == QUARANTINED)
        (bad,) = batch.bad
        assert (bad.position, bad.row) == (position, row)
        assert bad.shard == setup.index.shard_path[setup.index.shard[group]]
        assert bad.reason
        assert not batch.images[slot].any()
        assert batch.labels["what"][slot] == batch.labels["light"][slot] == -1
        assert np.isnan([batch.labels[task][slot] for task in ("where", "slope", "raw_where", "raw_slope")]).all()


def test_the_ledger_tells_everything_apart_and_adds_up() -> None:
    positions, ids = np.arange(6), np.arange(6, dtype=np.uint64) * 7
    status = np.zeros(6, np.uint8)
    once = ledger(0, positions, ids, status)
    first, rest = slice(0, 2), slice(2, 6)
    parts = [ledger(0, positions[part], ids[part], status[part]) for part in (rest, first)]
    assert sum(parts) % 2**64 == once
    shuffled = permutation(0, 6)
    assert ledger(0, positions[shuffled], ids[shuffled], status) == once
    assert ledger(0, positions[:0], ids[:0], status[:0]) == 0
    quarantined = status.copy()
    quarantined[3] = QUARANTINED
    others = [
        ledger(1, positions, ids, status),
        ledger(0, positions + 1, ids, status),
        ledger(0, positions, ids[::-1], status),
        ledger(0, positions, ids, quarantined),
        ledger(0, positions[1:], ids[1:], status[1:]),
    ]
    assert len({once, *others}) == 6
    assert once == 0x5DE562A9B20803DD  # comparable between versions


def test_storage_failures_reach_the_consumer() -> None:
    tiny(store := MemoryStore(), rows={"train": 40})
    setup = Setup(store, TrainView(CROPS["none"], 0))
    path = setup.index.shard_path[0]
    shard = store.get(path)
    store.put(path, shard[:100] + bytes([shard[100] ^ 1]) + shard[101:])
    with pytest.raises(DataError, match=path):
        list(setup.loader(range(setup.order.steps)))
    store.delete(path)
    with pytest.raises(StoreError, match=path):
        list(setup.loader(range(setup.order.steps)))


@dataclass
class Watched:
    """A reader and a view that are watched, or that fail."""

    setup: Setup
    fail_at: int | None = None
    gate: threading.Event | None = None
    free_reads: int | None = None
    read_order: list[int] = field(default_factory=list)
    alive: "weakref.WeakValueDictionary[int, RowGroup]" = field(default_factory=weakref.WeakValueDictionary)
    twice: list[int] = field(default_factory=list)
    rendered: int = 0

    def __post_init__(self) -> None:
        view = self.setup.view
        self._reader, self.index = self.setup.reader, self.setup.index
        self.size_px, self.fixed = view.size_px, view.fixed
        self._lock = threading.Lock()

    def read(self, number: int) -> RowGroup:
        with self._lock:
            self.read_order.append(number)
            waits = self.gate is not None and self.free_reads is not None and len(self.read_order) > self.free_reads
        if waits and self.gate is not None:
            self.gate.wait(PATIENCE_S)
        group = self._reader.read(number)
        with self._lock:
            if number in self.alive:
                self.twice.append(number)
            self.alive[number] = group
        return group

    def draw(self, epoch: int, positions: np.ndarray) -> Draws:
        return self.setup.view.draw(epoch, positions)

    def render(self, data: Sequence[memoryview], out: U8, draws: Draws, at: Sequence[int]) -> dict[int, str]:
        if self.gate is not None and self.free_reads is None:
            self.gate.wait(PATIENCE_S)
        refused = self.setup.view.render(data, out, draws, at)
        with self._lock:
            self.rendered += len(data)
            if self.fail_at is not None and self.rendered - len(data) < self.fail_at <= self.rendered:
                raise ZeroDivisionError("a fault in our code, not in the image")
        return refused

    def finish(self, out: U8, draws: Draws) -> None:
        self.setup.view.finish(out, draws)

    def loader(self, steps: range, **parallelism: Any) -> Loader:
        return Loader(self, self.setup.order, self, TARGETS, steps, **parallelism)  # type: ignore[arg-type]


@pytest.mark.parametrize("block_row_groups", [1, 2, None])
def test_row_groups_are_released_after_their_last_batch(plain: Setup, block_row_groups: int | None) -> None:
    """Alive are those that batches in flight need, and two blocks a lane; each at most once."""
    setup = Setup(plain.store, plain.view, lanes=2, block_row_groups=block_row_groups, global_batch=4, keep_tail=False)
    watched, order, prefetch = Watched(setup), setup.order, 2
    n = 2 * order.steps
    for batch in watched.loader(range(n), io_threads=2, prefetch_batches=prefetch):
        allowed = set[int]()
        for step in range(batch.step + 1, min(batch.step + prefetch, n - 1) + 1):
            epoch, number = divmod(step, order.steps)
            allowed |= {*order.epoch(epoch).at(slots(order, number, 0, 1)).group.tolist()}
        issued = min(batch.step + prefetch, n - 1)
        for lane in range(order.lanes):
            epoch, number = divmod(issued, order.steps)
            plan = order.epoch(epoch).lanes[lane]
            block = int(plan.block_of(np.array([(number + 1) * 2 - 1]))[0])
            allowed |= {*plan.block(block).groups.tolist()}
            if block + 1 < plan.blocks:
                allowed |= {*plan.block(block + 1).groups.tolist()}
            elif epoch == 0:
                allowed |= {*order.epoch(1).lanes[lane].block(0).groups.tolist()}
        eventually(lambda allowed=allowed: {*watched.alive.keys()} <= allowed)
    eventually(lambda: not watched.alive)
    assert not watched.twice


def test_what_a_batch_needs_is_read_first_and_then_the_next_blocks(plain: Setup) -> None:
    """Of all lanes: none waits for what another reads ahead. What has not begun when it is closed is not read."""
    setup = Setup(plain.store, plain.view, lanes=2, block_row_groups=3, global_batch=4)
    lanes = setup.order.epoch(0).lanes
    first, second = ({group for lane in lanes for group in lane.block(b).groups.tolist()} for b in (0, 1))
    assert min(len(lane.block(0).rows) for lane in lanes) >= 4  # enough for two batches
    watched = Watched(setup, gate=(gate := threading.Event()), free_reads=len(first))
    loader = watched.loader(range(5), io_threads=1, prefetch_batches=1)
    before = {*threading.enumerate()}
    source = iter(loader)
    next(source)
    eventually(lambda: len(watched.read_order) == len(first) + 1)
    assert {*watched.read_order[:-1]} == first
    assert watched.read_order[-1] in second
    loader.close()
    gate.set()
    eventually(lambda: not new_threads(before))
    assert len(watched.read_order) == len(first) + 1


def test_batches_are_prepared_ahead_and_no_further(plain: Setup) -> None:
    watched = Watched(plain)
    source = iter(watched.loader(range(9), prefetch_batches=2))
    next(source)
    eventually(lambda: watched.rendered == 3 * 8)
    next(source)
    eventually(lambda: watched.rendered == 4 * 8)
    source.close()  # type: ignore[attr-defined]
    assert watched.rendered == 4 * 8


@pytest.mark.parametrize("how", ["close", "generator", "drop"])
def test_stopping_early_leaves_no_thread_and_no_memory(plain: Setup, how: str) -> None:
    before = {*threading.enumerate()}
    watched = Watched(plain)
    loader = watched.loader(range(50), threads=2)
    source = iter(loader)
    assert len(list(islice(source, 3))) == 3
    assert new_threads(before)
    if how == "close":
        loader.close()
    elif how == "generator":
        source.close()  # type: ignore[attr-defined]
    del source, loader
    eventually(lambda: not new_threads(before))
    eventually(lambda: not watched.alive)


def test_a_loader_that_is_never_used_starts_nothing(plain: Setup) -> None:
    before = {*threading.enumerate()}
    loader = plain.loader(range(3))
    assert not new_threads(before)
    loader.close()
    loader.close()


def test_closing_does_not_wait_for_what_is_being_decoded(plain: Setup) -> None:
    before = {*threading.enumerate()}
    watched = Watched(plain, gate=(gate := threading.Event()))
    gate.set()
    loader = watched.loader(range(9), prefetch_batches=2)
    source = iter(loader)
    next(source)
    eventually(lambda: watched.rendered == 3 * 8)
    gate.clear()
    next(source)
    loader.close()
    assert new_threads(before)
    assert list(source) == []
    gate.set()
    eventually(lambda: not new_threads(before))


@pytest.mark.parametrize("fail_at", [1, 20, 75])
@pytest.mark.parametrize("threads", [1, 3])
def test_an_exception_in_a_thread_reaches_the_consumer(plain: Setup, fail_at: int, threads: int) -> None:
    before = {*threading.enumerate()}
    watched = Watched(plain, fail_at=fail_at)
    delivered: list[int] = []
    with pytest.raises(ZeroDivisionError, match="a fault in our code"):
        delivered.extend(batch.step for batch in watched.loader(range(plain.order.steps), threads=threads))
    assert delivered == [*range((fail_at - 1) // plain.global_batch if threads == 1 else len(delivered))]
    eventually(lambda: not new_threads(before))
    gc.collect()  # the traceback held them
    assert not watched.alive
