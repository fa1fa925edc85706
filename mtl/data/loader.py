"""Batches of one rank, in exact order: threads fetch row groups, decode into the batch's own memory, and stay ahead.

What is read ahead is bounded: each lane holds the block it is in and the next one. Blocks, and samples that wait to be
decoded, keep their row groups alive and nothing else does, so memory returns with the last batch that needs it.
"""

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
from mtl.data.order import Block, Order, slots
from mtl.data.reader import Reader, RowGroup
from mtl.data.transforms import U8, View

LabelArray = npt.NDArray[np.int64] | npt.NDArray[np.float32]

OK, QUARANTINED, EMPTY = 0, 1, 2
"""Status of a slot: a sample, a sample whose image can not be decoded (blank, labels masked), or padding."""

_CHUNK = 32  # samples that one thread decodes at a stretch

_Place = tuple[Future[RowGroup], int]
"""Where a sample lies: a row group that is being read, and the row in it."""


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
        self._steps: Iterator[int] = iter(steps)
        self._last_epoch = steps[-1] // order.steps if steps else 0
        self._rank, self._world_size, self._groups = rank, world_size, groups
        self.size_px = view.size_px
        self._prefetch = prefetch_batches
        self._io = ThreadPoolExecutor(io_threads, "mtl-read")
        self._decode = ThreadPoolExecutor(threads, "mtl-decode")
        self._pending: deque[_Pending] = deque()
        self._lanes = {lane: _LaneCursor(self, lane) for lane in range(rank, order.lanes, world_size)}
        self._shared: weakref.WeakValueDictionary[int, Future[RowGroup]] = weakref.WeakValueDictionary()

    def __iter__(self) -> Iterator[Batch]:
        try:
            while (step := next(self._steps, None)) is not None:
                self._pending.append(self._start(step))
                if len(self._pending) > self._prefetch:
                    yield self._pending.popleft().finish()
            while self._pending:
                yield self._pending.popleft().finish()
        finally:
            self.close()

    def close(self) -> None:
        """Stop the threads and end the iteration; what was read ahead is dropped. Does not wait."""
        for pool in (self._io, self._decode):
            pool.shutdown(wait=False, cancel_futures=True)
        self._steps = iter(())
        self._pending.clear()
        self._lanes.clear()

    def _start(self, step: int) -> "_Pending":
        epoch, batch = divmod(step, self._order.steps)
        positions = slots(self._order, batch, self._rank, self._world_size, self._groups)
        filled = np.flatnonzero(positions >= 0)
        n, size = len(positions), self.size_px
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
        places = self._locate(epoch, positions[filled])
        chunks = [
            self._decode.submit(self._fill, made, positions, filled[at : at + _CHUNK], places[at : at + _CHUNK])
            for at in range(0, len(filled), _CHUNK)
        ]
        for lane in self._lanes.values():
            lane.read_ahead()  # only now: what this batch needs of other lanes is read first
        return _Pending(made, chunks)

    def _locate(self, epoch: int, positions: npt.NDArray[np.int64]) -> list[_Place]:
        """Where the samples at `positions` lie, lane by lane: those of a lane are consecutive."""
        lanes, indices = positions % self._order.lanes, positions // self._order.lanes
        first = np.flatnonzero(np.diff(lanes, prepend=-1))
        counts = np.diff(first, append=len(positions))
        places: list[_Place] = []
        for lane, index, count in zip(lanes[first].tolist(), indices[first].tolist(), counts.tolist(), strict=True):
            places += self._lanes[lane].take(epoch, index, count)
        return places

    def hold(self, epoch: int, lane: int, number: int) -> "_Held":
        """Start reading the row groups of a lane's block `number`; the result keeps them alive."""
        block = self._order.epoch(epoch).lanes[lane].block(number)
        groups: dict[int, Future[RowGroup]] = {}
        for group in block.groups.tolist():
            future = self._shared.get(group)
            if future is None:
                future = self._shared[group] = self._io.submit(self._reader.read, group)
            groups[group] = future
        return _Held(epoch, block, groups)

    def hold_at(self, epoch: int, lane: int, index: int) -> "_Held":
        """`hold` for the block that has the lane's `index`."""
        return self.hold(epoch, lane, int(self._order.epoch(epoch).lanes[lane].block_of(np.array([index]))[0]))

    def hold_after(self, lane: int, held: "_Held") -> "_Held | None":
        """`hold` for the block that follows `held` in its lane; None at the end of the last epoch."""
        number = held.block.number + 1
        if number < self._order.epoch(held.epoch).lanes[lane].blocks:
            return self.hold(held.epoch, lane, number)
        return self.hold(held.epoch + 1, lane, 0) if held.epoch < self._last_epoch else None

    def _fill(
        self, made: Batch, positions: npt.NDArray[np.int64], at: npt.NDArray[np.int64], places: list[_Place]
    ) -> tuple[int, list[Bad]]:
        """Decode the samples at slots `at`; returns their ledger sum and the bad ones."""
        here = positions[at]
        draws = self._view.draw(made.epoch, here)
        ids = np.empty(len(at), np.uint64)
        columns = [(made.labels[target.task], target.column) for target in self._targets]
        bad: list[Bad] = []
        for i, (slot, (read, row)) in enumerate(zip(at.tolist(), places, strict=True)):
            group = read.result()
            ids[i] = group.ids[row]
            try:
                self._view.render(group.image(row), made.images[slot], draws, i)
            except BadImage as error:
                made.images[slot] = 0
                made.status[slot] = QUARANTINED
                index = self._reader.index
                bad.append(Bad(int(here[i]), index.shard_path[int(index.shard[group.number])], row, str(error)))
                continue
            for values, column in columns:
                values[slot] = group.labels[column][row]
        for target in self._targets:
            if target.negated_by_flip != "no":
                values = made.labels[target.task]
                values[at] = _mirrored(values[at], draws.flip, target.negated_by_flip)
        made.colour[at] = draws.colour
        return ledger(made.epoch, here, ids, made.status[at]), bad


@final
class _LaneCursor:
    """The block that a lane is in, and the next one, already being read."""

    def __init__(self, loader: Loader, lane: int) -> None:
        self._loader, self._lane = loader, lane
        self._here: _Held | None = None
        self._ahead: _Held | None = None

    def take(self, epoch: int, index: int, count: int) -> list[_Place]:
        """The places of the lane's samples [index, index + count)."""
        places: list[_Place] = []
        while count:
            held = self._at(epoch, index)
            stretch = held.places(index, count)
            places += stretch
            index, count = index + len(stretch), count - len(stretch)
        return places

    def read_ahead(self) -> None:
        """Start reading the next block, if that has not begun."""
        if self._here is not None and self._ahead is None:
            self._ahead = self._loader.hold_after(self._lane, self._here)

    def _at(self, epoch: int, index: int) -> "_Held":
        if self._here is not None and self._here.has(epoch, index):
            return self._here
        if self._ahead is not None and self._ahead.has(epoch, index):
            self._here = self._ahead
        else:
            self._here = self._loader.hold_at(epoch, self._lane, index)
        self._ahead = None
        return self._here


@final
@dataclass(frozen=True)
class _Held:
    """A block whose row groups are being read: they live at least as long as this."""

    epoch: int
    block: Block
    groups: dict[int, Future[RowGroup]]

    def has(self, epoch: int, index: int) -> bool:
        return self.epoch == epoch and self.block.start <= index < self.block.stop

    def places(self, index: int, count: int) -> list[_Place]:
        """Those of at most `count` samples from the lane's `index` on."""
        stretch = slice(index - self.block.start, index - self.block.start + count)
        rows = self.block.rows
        groups = (self.groups[group] for group in rows.group[stretch].tolist())
        return list(zip(groups, rows.row[stretch].tolist(), strict=True))


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
    return np.where(flip, np.mod(-values, 2 * np.pi) if how == "angle" else -values, values)
