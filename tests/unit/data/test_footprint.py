"""Memory is known before the start: lanes never hold more in their blocks than said."""

from itertools import pairwise

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mtl.data.footprint import Footprint, block_row_groups, footprint
from mtl.data.order import I64, Order
from tests.helpers.orders import Case, cases


def of(order: Order, lengths: I64, world_size: int) -> Footprint:
    return footprint(
        order, lengths, world_size, size_px=8, label_entries=1, prefetch_batches=2, prefetch_bytes=1_000, memory="none"
    )


@settings(max_examples=30)
@given(cases(), st.integers(1, 7), st.data())
def test_blocks_never_weigh_more(case: Case, world_size: int, data: st.DataObject) -> None:
    order = case.order()
    assume(world_size <= case.lanes)
    sizes = st.lists(st.integers(1, 100), min_size=len(case.rows), max_size=len(case.rows))
    lengths = np.array(data.draw(sizes), np.int64)
    most = of(order, lengths, world_size).blocks
    for epoch in range(3):
        lanes = order.epoch(epoch).lanes
        for rank in range(world_size):
            ours = [lanes[number] for number in range(rank, order.lanes, world_size)]
            # At worst every lane is in its heaviest block at the same time; a shared row group is held once.
            heaviest = [
                max((lane.block(b) for b in range(lane.blocks)), key=lambda b: lengths[b.groups].sum())
                for lane in ours
                if lane.blocks
            ]
            groups = {group for block in heaviest for group in block.groups.tolist()}
            assert lengths[[*groups]].sum() <= most
            assert all(len(block.groups) <= block_row_groups(order) for block in heaviest)


@given(cases())
def test_more_workers_hold_less_each_and_none_holds_more_than_the_data_set(case: Case) -> None:
    lengths = np.full(len(case.rows), 10)
    made = [of(case.order(), lengths, workers) for workers in range(1, case.lanes + 1)]
    assert all(more.blocks >= less.blocks for more, less in pairwise(made))
    assert made[0].blocks <= lengths.sum()


def test_the_arithmetic() -> None:
    """64 lanes of blocks of 8 row groups of 4 MB on 8 workers: 8 blocks each, a budget, and two batches of 128."""
    order = Case(rows=(100,) * 20_000, lanes=64, block_row_groups=8, global_batch=1024, keep_tail=False).order()
    held = of(order, np.full(20_000, 4_000_000), 8)
    batch = 128 * 3 * 8 * 8
    assert held == Footprint(blocks=8 * 8 * 4_000_000, prefetch=batch + 8 * 4_000_000, batches=2 * batch, kept=0)
