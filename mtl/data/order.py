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
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import final

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
        self.order_id = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        self.epoch = lru_cache(maxsize=2)(self._epoch)

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
        self.starts = np.concatenate([[0], np.cumsum(order.rows[self.groups])])

    @cached_property
    def lanes(self) -> list["Lane"]:
        """The lanes of this epoch."""
        length, longer = divmod(self.order.n, self.order.lanes)
        edges = np.minimum(np.arange(self.order.lanes + 1), longer) + np.arange(self.order.lanes + 1) * length
        return [Lane(self, lane, int(edges[lane]), int(edges[lane + 1])) for lane in range(self.order.lanes)]

    def at(self, positions: I64) -> Rows:
        """The rows at `positions` [n], each in [0, N)."""
        group, row = np.empty(len(positions), np.int64), np.empty(len(positions), np.int64)
        lane_of, index_of = positions % self.order.lanes, positions // self.order.lanes
        for lane in np.unique(lane_of):
            here = np.flatnonzero(lane_of == lane)
            plan = self.lanes[lane]
            blocks = plan.block_of(index_of[here])
            for block in np.unique(blocks):
                inside = here[blocks == block]
                found = plan.block(int(block))
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
    """The segment [first, last) of the epoch's concatenated rows, cut into blocks."""

    def __init__(self, epoch: Epoch, lane: int, first: int, last: int) -> None:
        self.epoch, self.lane, self.first, self.last = epoch, lane, first, last
        order = epoch.order
        # Row groups that overlap the segment, as a range of the permuted list.
        low = int(np.searchsorted(epoch.starts, first, side="right")) - 1
        high = int(np.searchsorted(epoch.starts, last, side="left"))
        size = order.block_row_groups or max(high - low, 1)
        ahead = (lane * size) // order.lanes if order.block_row_groups else 0
        cuts = [low, *range(low + size - ahead, high, size), high] if last > first else [low]
        self._cuts = np.array(cuts, np.int64)
        edges = np.clip(epoch.starts[self._cuts], first, last) - first
        self.edges: I64 = edges  # lane indices at which blocks begin, and the end

    def __len__(self) -> int:
        return self.last - self.first

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self._cuts) - 1

    def block_of(self, index: I64) -> I64:
        """The block that holds each lane index."""
        return np.searchsorted(self.edges, index, side="right") - 1

    def block(self, number: int) -> Block:
        """Block `number`, its rows in shuffled order."""
        epoch, order = self.epoch, self.epoch.order
        low, high = int(self._cuts[number]), int(self._cuts[number + 1])
        starts = np.maximum(epoch.starts[low:high], self.first)
        stops = np.minimum(epoch.starts[low + 1 : high + 1], self.last)
        counts = stops - starts
        total = int(counts.sum())
        local = np.repeat(np.arange(high - low), counts)
        offset = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
        group = epoch.groups[low:high][local]
        row = (starts - epoch.starts[low:high])[local] + offset
        if order.shuffle:
            shuffled = permutation(key("rows", order.seed, epoch.number, self.lane, number), total)
            group, row = group[shuffled], row[shuffled]
        return Block(number, int(self.edges[number]), Rows(group, row), epoch.groups[low:high])


def slots(order: Order, batch: int, rank: int, world_size: int, groups: int = 1) -> I64:
    """Positions that `rank` holds of global batch `batch`: int64 [ceil(L / W) * G / L], -1 where a slot is empty.

    Slots are empty behind the end of the epoch and where W does not divide L, so that every local batch has one size.
    Lanes are grouped by `lane mod groups`: each batch-norm group is a contiguous stretch.
    """
    per_lane = order.global_batch // order.lanes
    lanes = np.array(sorted(range(rank, order.lanes, world_size), key=lambda lane: (lane % groups, lane)), np.int64)
    index = np.arange(batch * per_lane, (batch + 1) * per_lane)
    positions = (index[None, :] * order.lanes + lanes[:, None]).reshape(-1)
    held = np.full(per_lane * -(-order.lanes // world_size), -1, np.int64)
    held[: len(positions)] = np.where(positions < order.n, positions, -1)
    return held
