"""The order of samples: nothing lost, nothing twice, the same global batches for every number of workers."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mtl.data.order import Order, slots
from tests.helpers.orders import Case, cases, everything, pairs
from tests.helpers.restore import assert_restores

EPOCHS = st.integers(0, 1000)


def enumerate_positions(order: Order, epoch: int) -> dict[int, tuple[int, int]]:
    """(row group, row) by position, walking through lanes and their blocks."""
    found: dict[int, tuple[int, int]] = {}
    for number, lane in enumerate(order.epoch(epoch).lanes):
        walked = [pair for block in range(lane.blocks) for pair in pairs(lane.block(block).rows)]
        found |= {index * order.lanes + number: pair for index, pair in enumerate(walked)}
    return found


@given(cases(), EPOCHS)
def test_every_row_once(case: Case, epoch: int) -> None:
    found = enumerate_positions(case.order(), epoch)
    assert sorted(found) == list(range(sum(case.rows)))
    assert sorted(found.values()) == everything(case)


@given(cases(), EPOCHS)
def test_at_answers_like_walking_through_blocks(case: Case, epoch: int) -> None:
    order = case.order()
    found = enumerate_positions(order, epoch)
    positions = np.random.default_rng(epoch).permutation(order.n)
    assert pairs(order.epoch(epoch).at(positions)) == [found[position] for position in positions.tolist()]


@given(cases(), EPOCHS)
def test_lanes_differ_by_at_most_one_and_longer_ones_come_first(case: Case, epoch: int) -> None:
    lengths = [len(lane) for lane in case.order().epoch(epoch).lanes]
    assert len(lengths) == case.lanes
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] - lengths[-1] <= 1


@given(cases(), EPOCHS)
def test_blocks_tile_their_lane_and_shuffle_within_their_row_groups(case: Case, epoch: int) -> None:
    order = case.order()
    plan = order.epoch(epoch)
    sequence = [(group, row) for group in plan.groups.tolist() for row in range(case.rows[group])]
    for lane in plan.lanes:
        blocks = [lane.block(number) for number in range(lane.blocks)]
        assert [block.number for block in blocks] == list(range(lane.blocks))
        assert [block.start for block in blocks] == [0, *(block.stop for block in blocks)][: len(blocks)]
        assert (blocks[-1].stop if blocks else 0) == len(lane)
        for block in blocks:
            assert len(block.groups) <= (case.block_row_groups or len(case.rows))
            assert {*block.rows.group.tolist()} <= {*block.groups.tolist()}
            segment = sequence[lane.first + block.start : lane.first + block.stop]
            assert sorted(pairs(block.rows)) == sorted(segment)
            if len(block.rows):
                indices = np.arange(block.start, block.stop)
                assert (lane.block_of(indices) == block.number).all()


@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 99))
def test_lanes_do_not_change_block_together(lanes: int, block_row_groups: int, epoch: int) -> None:
    """Lane l has its first change l B / L row groups early, and the others every B row groups after it."""
    per_lane, rows = 3 * block_row_groups, 10
    case = Case(rows=(rows,) * (per_lane * lanes), lanes=lanes, block_row_groups=block_row_groups, global_batch=lanes)
    changes: list[int] = []
    for number, lane in enumerate(case.order().epoch(epoch).lanes):
        edges = [lane.block(block).stop for block in range(lane.blocks - 1)]
        assert edges[0] == rows * (block_row_groups - number * block_row_groups // lanes)
        assert {b - a for a, b in pairwise(edges)} <= {rows * block_row_groups}
        changes += edges
    at_once = max(changes.count(edge) for edge in changes)
    assert at_once <= -(-lanes // block_row_groups)


@given(cases(), EPOCHS)
def test_without_blocks_a_lane_is_shuffled_as_a_whole(case: Case, epoch: int) -> None:
    lanes = replace(case, block_row_groups=None).order().epoch(epoch).lanes
    assert [lane.blocks for lane in lanes] == [int(len(lane) > 0) for lane in lanes]


@given(cases(), EPOCHS)
def test_storage_order_without_shuffle(case: Case, epoch: int) -> None:
    order = replace(case, shuffle=False).order()
    found = enumerate_positions(order, epoch)
    by_lane = [found[position] for lane in range(case.lanes) for position in range(lane, order.n, case.lanes)]
    assert by_lane == everything(case)


@given(cases(), st.integers(1, 7))
def test_a_global_batch_is_the_same_for_every_number_of_workers(case: Case, world_size: int) -> None:
    assume(world_size <= case.lanes)
    order = case.order()
    per_lane = case.global_batch // case.lanes
    seen: list[int] = []
    for batch in range(order.steps):
        parts = [slots(order, batch, rank, world_size) for rank in range(world_size)]
        assert {len(part) for part in parts} == {per_lane * -(-case.lanes // world_size)}
        held = [int(position) for part in parts for position in part if position >= 0]
        first = batch * case.global_batch
        assert sorted(held) == list(range(first, min(first + case.global_batch, order.n)))
        for rank, part in enumerate(parts):
            filled = part[part >= 0]
            assert (filled % case.lanes % world_size == rank).all()
        if case.lanes % world_size == 0 and first + case.global_batch <= order.n:
            assert (np.concatenate(parts) >= 0).all()
        seen += held
    assert sorted(seen) == list(range(order.samples))


@settings(max_examples=20)
@given(cases(), st.data())
def test_restored_at_every_step_it_delivers_the_rest_on_any_number_of_workers(case: Case, data: st.DataObject) -> None:
    def deliver(steps: range, world_size: int) -> dict[int, object]:
        order, found = case.order(), dict[int, object]()
        for step in steps:
            epoch, batch = divmod(step, order.steps)
            held = np.concatenate([slots(order, batch, rank, world_size) for rank in range(world_size)])
            held = held[held >= 0]
            found[step] = dict(zip(held.tolist(), pairs(order.epoch(epoch).at(held)), strict=True))
        return found

    assume(0 < case.order().steps <= 8)  # of 2 epochs and a step, each is a start
    assert_restores(deliver, 2 * case.order().steps + 1, {1, data.draw(st.integers(1, case.lanes))})


@given(cases())
def test_the_tail_is_dropped_or_kept(case: Case) -> None:
    order = case.order()
    n, rest = sum(case.rows), sum(case.rows) % case.global_batch
    assert order.n == n
    assert order.samples == (n if case.keep_tail else n - rest)
    assert order.steps == (-(-n // case.global_batch) if case.keep_tail else n // case.global_batch)


@given(cases(), st.integers(1, 7), st.integers(1, 7))
def test_batch_norm_groups_are_contiguous_and_the_same_for_every_number_of_workers(
    case: Case, groups: int, world_size: int
) -> None:
    assume(case.lanes % groups == 0 and groups % world_size == 0)
    order = case.order()
    size = case.global_batch // groups

    def stretches(workers: int) -> list[list[int]]:
        parts = [slots(order, 0, rank, workers, groups) for rank in range(workers)]
        return sorted(stretch.tolist() for part in parts for stretch in part.reshape(-1, size))

    alone = stretches(1)
    assert stretches(world_size) == alone
    if order.n >= case.global_batch:
        assert [len({position % case.lanes % groups for position in stretch}) for stretch in alone] == [1] * groups


def test_epochs_and_seeds_differ() -> None:
    case = Case(rows=(8,) * 12, lanes=3, global_batch=6)

    def sequence(case: Case, epoch: int) -> tuple[tuple[int, int], ...]:
        order = case.order()
        return tuple(pairs(order.epoch(epoch).at(np.arange(order.n))))

    made = {sequence(replace(case, seed=seed), epoch) for seed in range(3) for epoch in range(4)}
    assert len(made) == 12
    assert sequence(case, 3) == sequence(case, 3)


def test_neighbours_on_storage_part() -> None:
    """Rows of a block are mixed, and so are the row groups that meet in it."""
    order = Case(rows=(50,) * 40, lanes=2, block_row_groups=5, global_batch=2).order()
    block = order.epoch(0).lanes[0].block(0)
    assert np.mean(np.diff(block.rows.group) == 0) < 0.4
    assert np.mean(np.diff(block.rows.row) == 1) < 0.05
    assert np.diff(np.sort(block.groups)).max() > 1


@pytest.mark.parametrize(
    "change",
    [
        lambda case: replace(case, fingerprint="g"),
        lambda case: replace(case, split="val"),
        lambda case: replace(case, seed=8),
        lambda case: replace(case, lanes=4),
        lambda case: replace(case, block_row_groups=3),
        lambda case: replace(case, block_row_groups=None),
        lambda case: replace(case, global_batch=8),
        lambda case: replace(case, keep_tail=False),
        lambda case: replace(case, shuffle=False),
    ],
)
def test_order_id_tells_orders_apart(change: Callable[[Case], Case]) -> None:
    assert change(Case()).order().order_id != Case().order().order_id


def test_order_id_is_the_same_for_the_same_order() -> None:
    order = Case().order()
    before = order.order_id
    order.epoch(3).at(np.arange(order.n))
    slots(order, 0, 1, 2)
    assert order.order_id == before == Case().order().order_id


def test_golden_order() -> None:
    order = Case().order()
    assert order.order_id == "7ab67403b015d4a6"
    assert pairs(order.epoch(1).at(np.arange(15))) == [
        *[(1, 0), (0, 0), (3, 1), (0, 1), (3, 0), (0, 2), (4, 2), (2, 0)],
        *[(4, 1), (2, 3), (4, 4), (2, 2), (4, 3), (2, 1), (4, 0)],
    ]
    assert slots(order, 0, 1, 2).tolist() == [1, 3]
    assert slots(order, 3, 1, 2).tolist() == [13, -1]
    assert slots(Case(lanes=4, global_batch=8).order(), 0, 0, 1, groups=2).tolist() == [0, 4, 2, 6, 1, 5, 3, 7]


def test_fewer_rows_than_lanes() -> None:
    order = Case(rows=(2, 1), lanes=5, global_batch=10).order()
    assert order.steps == 1
    assert sorted(enumerate_positions(order, 0).values()) == [(0, 0), (0, 1), (1, 0)]
    assert slots(order, 0, 4, 5).tolist() == [-1, -1]
    assert replace(Case(rows=(2, 1), lanes=5, global_batch=10), keep_tail=False).order().steps == 0


def test_a_batch_is_a_whole_number_of_lanes() -> None:
    with pytest.raises(ValueError, match="multiple of lanes"):
        Case(lanes=3, global_batch=4).order()
