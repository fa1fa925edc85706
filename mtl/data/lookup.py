"""Where a row is trained on, and which rows a step trains on: an order read in both directions."""

from dataclasses import dataclass

import numpy as np

from mtl.data.order import I64, Epoch, Order, Rows, alike, held_lanes


@dataclass(frozen=True)
class Visits:
    """Where rows are trained on, each array int64 [n].

    `position` in the epoch; `step` since the beginning of the run, -1 for a row of the tail that is dropped; the `rank`
    whose local batch holds it, and the `slot` in that batch.
    """

    position: I64
    step: I64
    rank: I64
    slot: I64


def members(order: Order, step: int) -> Rows:
    """The rows of the global batch of `step`, in order of position."""
    epoch, batch = divmod(step, order.steps)
    first = batch * order.global_batch
    return order.epoch(epoch).at(np.arange(first, min(first + order.global_batch, order.n)))


def visits(order: Order, rows: Rows, epoch: int, world_size: int = 1, groups: int = 1) -> Visits:
    """Where `rows` [n] are trained on in `epoch`, by `world_size` ranks with `groups` batch-norm groups."""
    position = positions(order.epoch(epoch), rows)
    per_lane = order.global_batch // order.lanes
    ordinal = np.empty(order.lanes, np.int64)  # of a lane among those of its rank
    for rank in range(world_size):
        held = held_lanes(order, rank, world_size, groups)
        ordinal[held] = np.arange(len(held))
    lane, index = position % order.lanes, position // order.lanes
    step = np.where(position < order.samples, epoch * order.steps + position // order.global_batch, -1)
    return Visits(position, step, lane % world_size, ordinal[lane] * per_lane + index % per_lane)


def positions(epoch: Epoch, rows: Rows) -> I64:
    """The positions of `rows` [n] in `epoch`: the inverse of `Epoch.at`. Shuffles only the blocks that hold them."""
    order = epoch.order
    sequence = epoch.starts[epoch.places[rows.group]] + rows.row
    lane_of = np.searchsorted(order.edges, sequence, side="right") - 1
    found = np.empty(len(sequence), np.int64)
    for lane, here in alike(lane_of):
        plan = epoch.lanes[lane]
        index = sequence[here] - plan.first
        for block, among in alike(plan.block_of(index)):
            start = plan.start(block)
            shuffled = plan.shuffled(block, plan.start(block + 1) - start)
            place = np.empty_like(shuffled)
            place[shuffled] = np.arange(len(shuffled))
            found[here[among]] = (start + place[index[among] - start]) * order.lanes + lane
    return found
