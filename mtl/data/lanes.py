"""The blocks that a rank's lanes are in, and the reads behind them, ahead of need within a budget of bytes.

A lane always holds the block it is in. The next block of a lane is read ahead while everything held beyond the current
blocks fits the budget, the lane that needs its next block first coming first; one block may always be read ahead.
A row group lives as long as a block, or a sample that waits to be decoded, has a use for it. Blocks share a row group,
but not if each of its images is freed once it is decoded and both want the same one, as two epochs do.
"""

import weakref
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import final

import numpy as np
import numpy.typing as npt

from mtl.data.mixture import AnyOrder
from mtl.data.order import Block, Rows
from mtl.data.reader import RowGroup

I64 = npt.NDArray[np.int64]
Reads = dict[int, Future[RowGroup]]
"""Row groups by a number, read or being read; whoever holds the future keeps the row group alive."""


@dataclass(frozen=True)
class Located:
    """Where n samples are: their rows, and the reads that bring them.

    Sample i is in the row group that `reads[which[i]]` gives, or in memory already if `which[i]` is -1; int64 [n].
    """

    rows: Rows
    which: I64
    reads: list[Future[RowGroup]]

    def part(self, begin: int, end: int) -> "Located":
        """Samples [begin, end) of them."""
        rows = Rows(self.rows.group[begin:end], self.rows.row[begin:end])
        return Located(rows, self.which[begin:end], self.reads)


@final
class Lanes:
    """Where the samples of some lanes lie, in order.

    Args:
        order: of the split.
        lanes: numbers of ours.
        last_epoch: the last one to read for.
        read: fetches a row group; called on `pool`.
        sizes: bytes of each row group [R].
        ahead_bytes: most that is held beyond the current blocks.
        once: row groups of which each row can be decoded only once, bool [R].
        unknown: which of some rows [n] have to be read at all.
    """

    def __init__(
        self,
        order: AnyOrder,
        lanes: Iterable[int],
        last_epoch: int,
        read: Callable[[int], RowGroup],
        pool: Executor,
        sizes: I64,
        ahead_bytes: int,
        once: npt.NDArray[np.bool_],
        unknown: Callable[[Rows], npt.NDArray[np.bool_]],
    ) -> None:
        self._order, self._last_epoch = order, last_epoch
        self._read, self._pool, self._sizes = read, pool, sizes
        self._ahead_bytes, self._once, self._unknown = ahead_bytes, once, unknown
        self._cursors = {lane: _Cursor(lane) for lane in lanes}
        self._shared: weakref.WeakValueDictionary[int, Future[RowGroup]] = weakref.WeakValueDictionary()
        self._taken: weakref.WeakKeyDictionary[Future[RowGroup], set[int]] = weakref.WeakKeyDictionary()
        self._live_bytes = 0
        self._freed: deque[int] = deque()  # filled by whichever thread drops a row group, emptied by ours

    def locate(self, epoch: int, positions: I64) -> Located:
        """The samples at `positions`, those of a lane being consecutive."""
        lanes, indices = positions % self._order.lanes, positions // self._order.lanes
        first = np.flatnonzero(np.diff(lanes, prepend=-1))
        counts = np.diff(first, append=len(positions))
        groups: list[I64] = [np.zeros(0, np.int64)]
        rows: list[I64] = [np.zeros(0, np.int64)]
        which: list[int] = []
        number: dict[Future[RowGroup], int] = {}  # one row group may be in two reads
        for lane, index, count in zip(lanes[first].tolist(), indices[first].tolist(), counts.tolist(), strict=True):
            cursor = self._cursors[lane]
            while count:
                held = self._at(cursor, epoch, index)
                stretch = slice(index - held.block.start, min(index - held.block.start + count, len(held.block.rows)))
                groups.append(held.block.rows.group[stretch])
                rows.append(held.block.rows.row[stretch])
                reads = map(held.reads.get, groups[-1].tolist())
                which += [-1 if read is None else number.setdefault(read, len(number)) for read in reads]
                taken = stretch.stop - stretch.start
                index, count = index + taken, count - taken
            cursor.index = index
        return Located(Rows(np.concatenate(groups), np.concatenate(rows)), np.array(which, np.int64), [*number])

    def read_ahead(self) -> None:
        """Start reading next blocks, as far as the budget allows."""
        waiting = [cursor for cursor in self._cursors.values() if cursor.here and not cursor.ahead]
        for cursor in sorted(waiting, key=_Cursor.left):
            if cursor.following is None:
                cursor.following = self._after(cursor)
            if cursor.following is None:  # the last epoch's end
                continue
            held = self._held_bytes()
            if held > 0 and held + cursor.following.size > self._ahead_bytes:
                return
            cursor.ahead, cursor.following = self._start(cursor.following), None

    def close(self) -> None:
        """Let go of everything."""
        self._cursors.clear()

    def _held_bytes(self) -> int:
        """What is held beyond the current blocks."""
        while self._freed:
            self._live_bytes -= self._freed.popleft()
        return self._live_bytes - sum(cursor.here.size for cursor in self._cursors.values() if cursor.here)

    def _at(self, cursor: "_Cursor", epoch: int, index: int) -> "_Held":
        """The block that has the lane's `index`: the current one from now on."""
        if cursor.here and cursor.here.has(epoch, index):
            return cursor.here
        if cursor.ahead and cursor.ahead.has(epoch, index):
            cursor.here = cursor.ahead
        elif cursor.following and cursor.following.has(epoch, index):
            cursor.here = self._start(cursor.following)
        else:
            plan = self._order.epoch(epoch).lanes[cursor.lane]
            cursor.here = self._start(self._block(epoch, cursor.lane, int(plan.block_of(np.array([index]))[0]), index))
        cursor.ahead = cursor.following = None
        return cursor.here

    def _after(self, cursor: "_Cursor") -> "_Held | None":
        assert cursor.here is not None
        epoch, number = cursor.here.epoch, cursor.here.block.number + 1
        if number < self._order.epoch(epoch).lanes[cursor.lane].blocks:
            return self._block(epoch, cursor.lane, number)
        return self._block(epoch + 1, cursor.lane, 0) if epoch < self._last_epoch else None

    def _block(self, epoch: int, lane: int, number: int, index: int = 0) -> "_Held":
        """A block, and what has to be read of it from the lane's `index` on, in order of need."""
        block = self._order.epoch(epoch).lanes[lane].block(number)
        begin = max(index - block.start, 0)
        rest = Rows(block.rows.group[begin:], block.rows.row[begin:])
        unknown = self._unknown(rest)
        groups, rows = rest.group[unknown], rest.row[unknown]
        _, first = np.unique(groups, return_index=True)
        wanted = groups[np.sort(first)]
        once = {group: {*rows[groups == group].tolist()} for group in wanted[self._once[wanted]].tolist()}
        return _Held(epoch, block, wanted.tolist(), int(self._sizes[wanted].sum()), once)

    def _start(self, held: "_Held") -> "_Held":
        for group in held.groups:
            future, rows = self._shared.get(group), held.once.get(group, set[int]())
            if future is None or rows & self._taken.get(future, set[int]()):
                future = self._shared[group] = self._pool.submit(self._read, group)
                size = int(self._sizes[group])
                self._live_bytes += size
                weakref.finalize(future, self._freed.append, size).atexit = False
            if rows:
                self._taken.setdefault(future, set()).update(rows)
            held.reads[group] = future
        return held


@dataclass(frozen=True)
class _Held:
    """A block, the row groups of it that have to be read, their bytes, and the reads once they have begun.

    `once`: of the row groups whose rows can be decoded once, the rows that this block decodes.
    """

    epoch: int
    block: Block
    groups: list[int]
    size: int
    once: dict[int, set[int]]
    reads: Reads = field(default_factory=Reads)

    def has(self, epoch: int, index: int) -> bool:
        return self.epoch == epoch and self.block.start <= index < self.block.stop


@dataclass(eq=False)
class _Cursor:
    """A lane: the block it is in, and the next one, first planned and then being read."""

    lane: int
    index: int = 0
    here: _Held | None = None
    following: _Held | None = None
    ahead: _Held | None = None

    def left(self) -> int:
        """Rows until the next block is needed."""
        return self.here.block.stop - self.index if self.here else 0
