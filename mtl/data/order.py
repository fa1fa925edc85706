"""The order of samples: a pure function of (row groups, seed, epoch), elastic in the number of workers.

N rows in R row groups; L lanes, blocks of B row groups, global batches of G samples (L divides G):

1. The row groups are permuted with key (seed, epoch) and their rows concatenated into one sequence of length N.
2. It is cut into L contiguous segments, one a lane, whose lengths differ by at most one (longer ones first).
3. Within a lane, rows are shuffled inside blocks of B consecutive row groups, with key (seed, epoch, lane, block).
   The first block of lane l is shortened by l * B // L row groups, so that lanes do not change block together.
4. Position p belongs to lane p mod L, at index p div L. Global batch b holds the positions [b G, (b + 1) G).
5. Rank r of W owns the lanes l with l mod W == r.

So a global batch has the same members for every W <= L, and nothing but a position is needed to resume.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Protocol, final

import numpy as np
import numpy.typing as npt

from mtl.data.keyed import key, permutation

I64 = npt.NDArray[np.int64]

ORDER_VERSION = 1


@dataclass(frozen=True)
class Rows:
    """Rows by address: `group` [n] into the index's row groups, `row` [n] within the group."""

    group: I64
    row: I64

    def __len__(self) -> int:
        return len(self.group)


class Batches(Protocol):
    """What is cut into global batches of G samples over L lanes: positions [0, n)."""

    n: int
    lanes: int
    global_batch: int


@final
class Order:
    """The order of one split.

    Args:
        rows: rows of each row group, int64 [R], in storage order.
        fingerprint: the data set's, so that `order_id` tells data sets apart.
        split: name of the split.
        seed: key of every permutation.
        lanes: L.
        block_row_groups: B; None makes a lane's epoch one block.
        global_batch: G, a multiple of L.
        keep_tail: whether the last, incomplete global batch counts.
        shuffle: False gives storage order (evaluation); lanes are contiguous segments of it.
    """

    def __init__(
        self,
        rows: I64,
        *,
        fingerprint: str,
        split: str,
        seed: int,
        lanes: int,
        block_row_groups: int | None,
        global_batch: int,
        keep_tail: bool,
        shuffle: bool = True,
    ) -> None:
        if global_batch % lanes:
            raise ValueError(f"global_batch {global_batch} must be a multiple of lanes {lanes}")
        self.rows, self.n = rows, int(rows.sum())
        self.seed, self.lanes, self.block_row_groups = seed, lanes, block_row_groups
        self.global_batch, self.keep_tail, self.shuffle = global_batch, keep_tail, shuffle
        identity = {
            "version": ORDER_VERSION,
            "fingerprint": fingerprint,
            "split": split,
            "seed": seed,
            "lanes": lanes,
            "block_row_groups": block_row_groups,
            "global_batch": global_batch,
            "keep_tail": keep_tail,
            "shuffle": shuffle,
        }
        length, longer = divmod(self.n, lanes)
        number = np.arange(lanes + 1)
        self.edges: I64 = number * length + np.minimum(number, longer)  # where lanes begin in the sequence, and its end
        self.order_id = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        self.epoch = lru_cache(maxsize=2)(self._epoch)

    @property
    def parts(self) -> tuple["Order", ...]:
        """The orders of single data sets that share its lanes: itself, unlike those of a mixture."""
        return (self,)

    @property
    def steps(self) -> int:
        """Global batches of one epoch."""
        full, rest = divmod(self.n, self.global_batch)
        return full + (1 if self.keep_tail and rest else 0)

    @property
    def samples(self) -> int:
        """Samples of one epoch that are trained on: the kept prefix."""
        return self.n if self.keep_tail else self.steps * self.global_batch

    def _epoch(self, epoch: int) -> "Epoch":
        return Epoch(self, epoch)


@final
class Epoch:
    """One epoch of an order. Use `Order.epoch`, which keeps the two that are in flight."""

    def __init__(self, order: Order, epoch: int) -> None:
        self.order, self.number = order, epoch
        groups = len(order.rows)
        if order.shuffle:
            self.groups = permutation(key("groups", order.seed, epoch), groups)
        else:
            self.groups = np.arange(groups)
        self.starts = np.zeros(groups + 1, np.int64)
        # They are looked up in random order, which is faster the less memory that they are spread over.
        rows = order.rows.astype(np.min_scalar_type(order.rows.max(initial=0)))
        np.cumsum(rows.take(self.groups), dtype=np.int64, out=self.starts[1:])

    @cached_property
    def lanes(self) -> list["Lane"]:
        """The lanes of this epoch."""
        edges = self.order.edges.tolist()
        return [Lane(self, lane, first, last) for lane, (first, last) in enumerate(pairwise(edges))]

    @cached_property
    def places(self) -> I64:
        """Where each row group stands in the permuted list: the inverse of `groups`, int64 [R]."""
        places = np.empty_like(self.groups)
        places[self.groups] = np.arange(len(self.groups))
        return places

    def at(self, positions: I64) -> Rows:
        """The rows at `positions` [n], each in [0, N)."""
        group, row = np.empty(len(positions), np.int64), np.empty(len(positions), np.int64)
        index_of = positions // self.order.lanes
        for lane, here in alike(positions % self.order.lanes):
            plan = self.lanes[lane]
            for block, among in alike(plan.block_of(index_of[here])):
                found, inside = plan.block(block), here[among]
                at = index_of[inside] - found.start
                group[inside], row[inside] = found.rows.group[at], found.rows.row[at]
        return Rows(group, row)


@dataclass(frozen=True)
class Block:
    """A shuffled stretch of a lane: `rows` at the lane's indices [start, start + len(rows)), from `groups`."""

    number: int
    start: int
    rows: Rows
    groups: I64

    @property
    def stop(self) -> int:
        """The first index after the block."""
        return self.start + len(self.rows)


@final
class Lane:
    """The segment [first, last) of the epoch's concatenated rows, cut into blocks, none of which is listed.

    Block k holds the permuted row groups from cut k to cut k + 1, where cut k is `low - ahead + k * size`, but within
    [low, high): those that overlap the segment.
    """

    def __init__(self, epoch: Epoch, lane: int, first: int, last: int) -> None:
        self.epoch, self.lane, self.first, self.last = epoch, lane, first, last
        order = epoch.order
        self.low = int(np.searchsorted(epoch.starts, first, side="right")) - 1
        self.high = int(np.searchsorted(epoch.starts, last, side="left")) if last > first else self.low
        self._size = order.block_row_groups or max(self.high - self.low, 1)
        self._ahead = (lane * self._size) // order.lanes if order.block_row_groups else 0

    def __len__(self) -> int:
        return self.last - self.first

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return -(-(self.high - self.low + self._ahead) // self._size) if len(self) else 0

    def block_of(self, index: I64) -> I64:
        """The block that holds each lane index."""
        starts = self.epoch.starts[self.low : self.high + 1]
        return (np.searchsorted(starts, self.first + index, side="right") - 1 + self._ahead) // self._size

    def start(self, number: int) -> int:
        """The lane index at which block `number` begins."""
        return min(max(int(self.epoch.starts[self._cut(number)]), self.first), self.last) - self.first

    def shuffled(self, number: int, rows: int) -> I64:
        """Which of the `rows` rows of block `number`, counted along the sequence, comes at each place: int64 [rows]."""
        order = self.epoch.order
        if not order.shuffle:
            return np.arange(rows)
        return permutation(key("rows", order.seed, self.epoch.number, self.lane, number), rows)

    def block(self, number: int) -> Block:
        """Block `number`, its rows in shuffled order."""
        epoch, low, high = self.epoch, self._cut(number), self._cut(number + 1)
        edges = epoch.starts[low : high + 1].clip(self.first, self.last)
        sequence = edges[0] + self.shuffled(number, int(edges[-1] - edges[0]))
        local = np.repeat(np.arange(high - low), np.diff(edges))[sequence - edges[0]]
        row = sequence - epoch.starts[low:high][local]
        groups = epoch.groups[low:high]
        return Block(number, int(edges[0]) - self.first, Rows(groups[local], row), groups)

    def _cut(self, number: int) -> int:
        return min(max(self.low - self._ahead + number * self._size, self.low), self.high)


def held_lanes(order: Batches, rank: int, world_size: int, groups: int = 1) -> I64:
    """The lanes of `rank`, in the order of its slots: those of one batch-norm group (lane mod groups) together."""
    return np.array(sorted(range(rank, order.lanes, world_size), key=lambda lane: (lane % groups, lane)), np.int64)


def slots(order: Batches, batch: int, rank: int, world_size: int, groups: int = 1) -> I64:
    """Positions that `rank` holds of global batch `batch`: int64 [ceil(L / W) * G / L], -1 where a slot is empty.

    Slots are empty behind the end of the epoch and where W does not divide L, so that every local batch has one size.
    Each batch-norm group is a contiguous stretch.
    """
    per_lane = order.global_batch // order.lanes
    index = np.arange(batch * per_lane, (batch + 1) * per_lane)
    positions = (index * order.lanes + held_lanes(order, rank, world_size, groups)[:, None]).reshape(-1)
    held = np.full(per_lane * -(-order.lanes // world_size), -1, np.int64)
    held[: len(positions)] = np.where(positions < order.n, positions, -1)
    return held


def alike(values: I64) -> Iterator[tuple[int, I64]]:
    """Each of the distinct `values` [n], with the places where it stands."""
    by_value = np.argsort(values, kind="stable")
    for places in np.split(by_value, np.flatnonzero(np.diff(values[by_value])) + 1):
        if len(places):
            yield int(values[places[0]]), places
