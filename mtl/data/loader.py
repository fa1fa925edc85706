"""Batches of one rank, in exact order: threads fetch row groups, decode into the batch's own memory, and stay ahead.

What is read ahead is bounded: each lane holds the block it is in and the next one. A block keeps its row groups alive
and nothing else does, so memory returns when the last batch that needs a block has been decoded.
"""

import itertools
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import numpy.typing as npt

from mtl.data.image import BadImage
from mtl.data.keyed import hashes, key
from mtl.data.order import Block, Epoch, Order, slots
from mtl.data.reader import Reader, RowGroup
from mtl.data.transforms import U8, View

LabelArray = npt.NDArray[np.int64] | npt.NDArray[np.float32]

OK, QUARANTINED, EMPTY = 0, 1, 2
"""Status of a slot: a sample, a sample whose image can not be decoded (blank, labels masked), or padding."""

_CHUNK = 64  # samples that one thread decodes at a stretch


@dataclass(frozen=True)
class Target:
    """What a task asks of the data: the label column, and what a mirror does to it."""

    task: str
    column: str
    integer: bool
    negated_by_flip: Literal["no", "angle", "number"] = "no"


@dataclass(frozen=True)
class Bad:
    """A quarantined sample."""

    position: int
    shard: str
    row: int
    reason: str


@dataclass
class Batch:
    """One rank's part of a global batch, n slots.

    images uint8 [n, size, size, 3]; labels[task] int64 [n] (-1 missing) or float32 [n] (NaN missing);
    colour float32 [n, 3]; status uint8 [n]; ledger: sum of the samples' hashes modulo 2^64.
    """

    step: int
    epoch: int
    images: U8
    labels: dict[str, LabelArray]
    colour: npt.NDArray[np.float32]
    status: npt.NDArray[np.uint8]
    ledger: int
    bad: list[Bad]


@final
class Loader:
    """An iterator over this rank's batches of the given steps.

    Args:
        reader: row groups of the split.
        order: its order.
        view: the transform.
        targets: one for each task.
        steps: half-open range of steps to deliver; step s is batch s mod steps-per-epoch of its epoch.
        rank, world_size: which lanes are ours.
        groups: batch-norm groups; see `order.slots`.
        threads, io_threads, prefetch_batches: parallelism, never the result.
    """

    def __init__(
        self,
        reader: Reader,
        order: Order,
        view: View,
        targets: tuple[Target, ...],
        steps: range,
        *,
        rank: int = 0,
        world_size: int = 1,
        groups: int = 1,
        threads: int = 1,
        io_threads: int = 8,
        prefetch_batches: int = 4,
    ) -> None:
        self._reader, self._order, self._view, self._targets = reader, order, view, targets
        self._steps = iter(steps)
        self._last_epoch = (steps.stop - 1) // order.steps
        self._rank, self._world_size, self._groups = rank, world_size, groups
        self.size_px = view.size_px
        self._prefetch = prefetch_batches
        self._io = ThreadPoolExecutor(io_threads, "mtl-read")
        self._decode = ThreadPoolExecutor(threads, "mtl-decode")
        self._pending: deque[_Pending] = deque()
        self._lanes: dict[int, _LaneCursor] = {}
        self._shared: weakref.WeakValueDictionary[int, Future[RowGroup]] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Batch]:
        try:
            while True:
                for step in itertools.islice(self._steps, self._prefetch - len(self._pending)):
                    self._pending.append(self._start(step, *divmod(step, self._order.steps)))
                if not self._pending:
                    return
                yield self._pending.popleft().finish()
        finally:
            self.close()

    def close(self) -> None:
        """Stop the threads; what was read ahead is dropped."""
        for pool in (self._io, self._decode):
            pool.shutdown(wait=False, cancel_futures=True)
        self._pending.clear()
        self._lanes.clear()

    def _start(self, step: int, epoch: int, batch: int) -> "_Pending":
        order, size = self._order, self.size_px
        plan = order.epoch(epoch)
        positions = slots(order, batch, self._rank, self._world_size, self._groups)
        filled = np.flatnonzero(positions >= 0)
        where = self._locate(plan, positions[filled])
        n = len(positions)
        status = np.full(n, EMPTY, np.uint8)
        status[filled] = OK
        made = Batch(
            step=step,
            epoch=epoch,
            images=np.zeros((n, size, size, 3), np.uint8),
            labels={t.task: _missing(n, t.integer) for t in self._targets},
            colour=np.ones((n, 3), np.float32),
            status=status,
            ledger=0,
            bad=[],
        )
        chunks = [
            self._decode.submit(self._fill, made, plan, positions, filled[at : at + _CHUNK], where[at : at + _CHUNK])
            for at in range(0, len(filled), _CHUNK)
        ]
        return _Pending(made, chunks)

    def _locate(self, plan: Epoch, positions: npt.NDArray[np.int64]) -> "list[_Place]":
        places: list[_Place] = []
        lanes = plan.order.lanes
        for position in positions.tolist():
            index, lane = divmod(position, lanes)
            cursor = self._lanes.get(lane)
            if cursor is None:
                cursor = self._lanes[lane] = _LaneCursor(self, lane)
            held = cursor.at(plan.number, index)
            at = index - held.block.start
            places.append(_Place(held, int(held.block.rows.group[at]), int(held.block.rows.row[at])))
        return places

    def hold(self, block: Block) -> "_Held":
        """Start reading the row groups of `block`; the result keeps them alive."""
        groups: dict[int, Future[RowGroup]] = {}
        with self._lock:
            for number in block.groups.tolist():
                future = self._shared.get(number)
                if future is None:
                    future = self._shared[number] = self._io.submit(self._reader.read, number)
                groups[number] = future
        return _Held(block, groups)

    def following(self, epoch: int, lane: int, block: int) -> tuple[int, int] | None:
        """The (epoch, block) after a block of a lane."""
        if block + 1 < self._order.epoch(epoch).lanes[lane].blocks:
            return epoch, block + 1
        return (epoch + 1, 0) if epoch < self._last_epoch else None

    def block(self, epoch: int, lane: int, block: int) -> Block:
        """Block number `block` of a lane."""
        return self._order.epoch(epoch).lanes[lane].block(block)

    def block_at(self, epoch: int, lane: int, index: int) -> int:
        """The block that holds `index` of a lane."""
        return int(self._order.epoch(epoch).lanes[lane].block_of(np.array([index]))[0])

    def _fill(
        self,
        made: Batch,
        plan: Epoch,
        positions: npt.NDArray[np.int64],
        at: npt.NDArray[np.int64],
        places: "list[_Place]",
    ) -> tuple[int, list[Bad]]:
        """Decode the samples at slots `at`; returns their ledger sum and the bad ones."""
        here = positions[at]
        draws = self._view.draw(plan.number, here)
        stretch = slice(int(at[0]), int(at[-1]) + 1)
        whole = stretch.stop - stretch.start == len(at)
        images = made.images[stretch] if whole else np.empty((len(at), *made.images.shape[1:]), np.uint8)
        ids = np.empty(len(at), np.uint64)
        bad: list[Bad] = []
        for i, place in enumerate(places):
            group = place.held.groups[place.group].result()
            ids[i] = group.ids[place.row]
            slot = at[i]
            try:
                self._view.render(group.image(place.row), images[i], draws, i)
            except BadImage as error:
                images[i] = 0
                made.status[slot] = QUARANTINED
                index = self._reader.index
                bad.append(Bad(int(here[i]), index.shard_path[int(index.shard[place.group])], place.row, str(error)))
                continue
            for target in self._targets:
                made.labels[target.task][slot] = group.labels[target.column][place.row]
        self._view.finish(images, draws)
        for target in self._targets:
            if target.negated_by_flip != "no":
                values = made.labels[target.task]
                values[at] = _mirrored(values[at], draws.flip, target.negated_by_flip)
        if not whole:
            made.images[at] = images
        made.colour[at] = draws.colour
        return ledger(plan.number, here, ids, made.status[at]), bad


@final
class _LaneCursor:
    """The block that a lane is in, and the next one, already being read."""

    def __init__(self, loader: Loader, lane: int) -> None:
        self._loader, self._lane = loader, lane
        self._held: dict[tuple[int, int], _Held] = {}
        self._here: tuple[int, int] = (-1, -1)

    def at(self, epoch: int, index: int) -> "_Held":
        held = self._held.get(self._here)
        if held is not None and self._here[0] == epoch and held.block.start <= index < held.block.stop:
            return held
        self._here = (epoch, self._loader.block_at(epoch, self._lane, index))
        following = self._loader.following(epoch, self._lane, self._here[1])
        wanted = [self._here] if following is None else [self._here, following]
        self._held = {at: self._held.get(at) or self._hold(*at) for at in wanted}
        return self._held[self._here]

    def _hold(self, epoch: int, block: int) -> "_Held":
        return self._loader.hold(self._loader.block(epoch, self._lane, block))


@final
@dataclass(frozen=True)
class _Held:
    block: Block
    groups: dict[int, Future[RowGroup]]


@final
@dataclass(frozen=True)
class _Place:
    held: _Held
    group: int
    row: int


@final
@dataclass(frozen=True)
class _Pending:
    batch: Batch
    chunks: list[Future[tuple[int, list[Bad]]]]

    def finish(self) -> Batch:
        batch = self.batch
        for chunk in self.chunks:
            part, bad = chunk.result()
            batch.ledger = (batch.ledger + part) % 2**64
            batch.bad.extend(bad)
        return batch


def ledger(
    epoch: int, positions: npt.NDArray[np.int64], ids: npt.NDArray[np.uint64], status: npt.NDArray[np.uint8]
) -> int:
    """Sum modulo 2^64 of keyed hashes of (epoch, position, image id, status): equal for any split over workers."""
    once = hashes(key("ledger", epoch), positions.astype(np.uint64) * np.uint64(4) + status.astype(np.uint64))
    with np.errstate(over="ignore"):
        return int(hashes(key("ledger"), once ^ ids).sum(dtype=np.uint64))


def _missing(n: int, integer: bool) -> LabelArray:
    return np.full(n, -1, np.int64) if integer else np.full(n, np.nan, np.float32)


def _mirrored(values: LabelArray, flip: npt.NDArray[np.bool_], how: Literal["angle", "number"]) -> LabelArray:
    negated = np.where(flip, -values, values)
    return np.mod(negated, 2 * np.pi).astype(np.float32) if how == "angle" else negated
