"""Several data sets trained on at once: lanes apportioned to them by weight, each read in an order of its own.

A data set with L_d of L lanes has an order by itself, of L_d lanes and global batches of G_d = G L_d / L samples, so
every global batch has exactly G_d samples of it. Its lanes are neighbours, so that ranks get like shares. Its epochs go
by its own clock: at step s it is in epoch s div steps_d, at its global batch s mod steps_d. Tails are dropped, or
proportions would not be exact.

A mixture has no epoch. So that it is read as an order is, `steps` steps are called one, and the lanes of an `epoch` are
windows of that length onto the endless sequences of the data sets' lanes. Nothing but a step is needed to resume.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import TypeAlias, final

import numpy as np

from mtl.data.keyed import key
from mtl.data.order import I64, ORDER_VERSION, Block, Order, Rows


@dataclass(frozen=True)
class Source:
    """A data set's part in a mixture: rows of its row groups, int64 [R], its fingerprint, and its weight, above 0."""

    rows: I64
    fingerprint: str
    weight: float


@final
class Mixture:
    """The order of a mixture, to be used where an `Order` is.

    Row groups are numbered over all sources, those of the first one first; `rows` are theirs.

    Args:
        sources: at least one.
        split, seed, block_row_groups: as of an `Order`.
        lanes, global_batch: L and G, of all sources together.
        steps: what an epoch of the mixture is, for schedules and evaluations; the sources' own do not depend on it.
    """

    shuffle = True

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        split: str,
        seed: int,
        lanes: int,
        block_row_groups: int | None,
        global_batch: int,
        steps: int,
    ) -> None:
        if global_batch % lanes:
            raise ValueError(f"global_batch {global_batch} must be a multiple of lanes {lanes}")
        if steps < 1:
            raise ValueError(f"steps {steps} must be at least 1")
        shares = apportion([source.weight for source in sources], lanes)
        self.parts = tuple(
            Order(
                source.rows,
                fingerprint=source.fingerprint,
                split=split,
                seed=key("source", seed, number),  # two that are alike must not be in step
                lanes=share,
                block_row_groups=block_row_groups,
                global_batch=share * global_batch // lanes,
                keep_tail=False,
            )
            for number, (source, share) in enumerate(zip(sources, shares, strict=True))
        )
        for part in self.parts:
            if part.steps == 0:
                raise ValueError(f"{part.n} rows are fewer than the {part.global_batch} that each step takes of them")
        self.lanes, self.global_batch, self.steps = lanes, global_batch, steps
        self.n = self.samples = steps * global_batch
        self.rows: I64 = np.concatenate([source.rows for source in sources])
        self.first_group: I64 = np.cumsum([0, *(len(source.rows) for source in sources)])
        identity = {"version": ORDER_VERSION, "parts": [part.order_id for part in self.parts], "steps": steps}
        self.order_id = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        self.epoch = lru_cache(maxsize=2)(self._epoch)

    def _epoch(self, epoch: int) -> "Window":
        return Window(self, epoch)


@final
class Window:
    """The steps [epoch * steps, (epoch + 1) * steps) of a mixture."""

    def __init__(self, mixture: Mixture, epoch: int) -> None:
        first = epoch * mixture.steps
        self.lanes = [
            MixedLane(part, lane, int(mixture.first_group[number]), first, mixture.steps)
            for number, part in enumerate(mixture.parts)
            for lane in range(part.lanes)
        ]


@final
class MixedLane:
    """`steps` steps, from step `first` on, of lane `lane` of every epoch of `part`, one epoch after another.

    Blocks are not counted, which would take every epoch's permutation: a block's number is that of its last index, and
    any other of its indices names it too. So the block after `number` is that of `number + 1`, as in a `Lane`.
    """

    def __init__(self, part: Order, lane: int, first_group: int, first: int, steps: int) -> None:
        self._part, self._lane, self._first_group = part, lane, first_group
        self._per_step = part.global_batch // part.lanes
        self._first, self._length = first * self._per_step, steps * self._per_step

    def __len__(self) -> int:
        return self._length

    @property
    def blocks(self) -> int:
        """One more than the last block's number."""
        return self._length

    def block_of(self, index: I64) -> I64:
        """A number of the block that holds each index."""
        return index

    def block(self, number: int) -> Block:
        """The block that holds index `number`, cut where the window or the kept part of the part's epoch ends."""
        visited = self._part.steps * self._per_step  # of the lane, in each epoch
        epoch, at = divmod(self._first + number, visited)
        lane = self._part.epoch(epoch).lanes[self._lane]
        whole = lane.block(int(lane.block_of(np.array([at]))[0]))
        start = number - (at - whole.start)  # of the whole block, from here on as an index of the window
        kept = slice(max(-start, 0), min(visited - whole.start, self._length - start))
        group, row = whole.rows.group[kept], whole.rows.row[kept]
        groups = whole.groups[np.isin(whole.groups, group)] + self._first_group
        last = start + min(kept.stop, len(whole.rows)) - 1
        return Block(last, start + kept.start, Rows(group + self._first_group, row), groups)


AnyOrder: TypeAlias = Order | Mixture
"""What can be trained on."""


def apportion(weights: Sequence[float], lanes: int) -> list[int]:
    """`lanes` shared out by weight: by largest remainder (Hamilton's method), but at least one for each.

    Those that are due less than one get one, and the others share the rest. Exact: no float is added.

    Raises:
        ValueError: there is no weight, more weights than lanes, or a weight that is not a positive number.
    """
    if not 0 < len(weights) <= lanes:
        raise ValueError(f"{len(weights)} weights for {lanes} lanes: expected at least one, and at most one a lane")
    if not all(0 < weight < math.inf for weight in weights):
        raise ValueError(f"weights {list(weights)} must be positive numbers")
    shares, left = [0] * len(weights), lanes
    others = {number: Fraction(weight) for number, weight in enumerate(weights)}
    while small := [number for number, weight in others.items() if weight * left < sum(others.values())]:
        for number in small:
            shares[number] = 1
            del others[number]
        left -= len(small)
    due = {number: weight * left / sum(others.values()) for number, weight in others.items()}
    for number, exact in due.items():
        shares[number] = int(exact)
    by_remainder = sorted(due, key=lambda number: int(due[number]) - due[number])
    for number in by_remainder[: lanes - sum(shares)]:
        shares[number] += 1
    return shares
