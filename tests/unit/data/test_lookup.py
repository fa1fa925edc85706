"""Where a row is trained on, and which rows a step holds: each the inverse of the other."""

from random import Random

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from mtl.data import lookup
from mtl.data.lookup import members, positions, visits
from mtl.data.order import Lane, Order, Rows, slots
from tests.helpers.orders import Case, cases, everything, pairs

EPOCHS = st.integers(0, 9)


def rows_of(chosen: list[tuple[int, int]]) -> Rows:
    group, row = np.array(chosen, np.int64).reshape(-1, 2).T
    return Rows(group, row)


@given(cases(), EPOCHS, st.randoms(use_true_random=False))
def test_positions_are_the_inverse_of_the_rows_at_them(case: Case, epoch: int, random: Random) -> None:
    plan = case.order().epoch(epoch)
    rows = everything(case)
    random.shuffle(rows)
    rows = rows[: random.randint(0, len(rows))] + rows[:2]  # some, and some twice
    found = positions(plan, rows_of(rows))
    assert pairs(plan.at(found)) == rows
    every = np.arange(plan.order.n)
    assert positions(plan, plan.at(every)).tolist() == every.tolist()


@given(cases(), st.integers(0, 2))
def test_steps_hold_the_rows_that_visit_them(case: Case, epoch: int) -> None:
    order = case.order()
    assume(order.steps)
    rows = everything(case)
    found = visits(order, rows_of(rows), epoch)
    for step in range(epoch * order.steps, (epoch + 1) * order.steps):
        assert {*pairs(members(order, step))} == {rows[at] for at in np.flatnonzero(found.step == step)}
    dropped = found.step == -1
    assert dropped.sum() == order.n - order.samples
    assert (found.position[dropped] >= order.samples).all()


@given(cases(), st.integers(0, 2), st.integers(1, 7), st.integers(1, 4))
def test_a_row_is_in_the_slot_that_it_is_said_to_be_in(case: Case, epoch: int, world_size: int, groups: int) -> None:
    assume(world_size <= case.lanes)
    order = case.order()
    found = visits(order, rows_of(everything(case)), epoch, world_size, groups)
    for position, step, rank, slot in zip(found.position, found.step, found.rank, found.slot, strict=True):
        if step >= 0:
            held = slots(order, int(step) - epoch * order.steps, int(rank), world_size, groups)
            assert held[slot] == position


def test_only_the_blocks_that_hold_the_rows_are_shuffled(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    order = Case(rows=(5,) * 40, lanes=4, block_row_groups=3, global_batch=4).order()
    asked: list[tuple[int, int]] = []
    shuffled = Lane.shuffled

    def counted(lane: Lane, number: int, rows: int) -> np.ndarray:
        asked.append((lane.lane, number))
        return shuffled(lane, number, rows)

    monkeypatch.setattr(Lane, "shuffled", counted)
    block = order.epoch(0).lanes[2].block(1)
    asked.clear()
    lookup.positions(order.epoch(0), block.rows)
    assert asked == [(2, 1)]


def test_golden_visits() -> None:
    order: Order = Case().order()
    found = visits(order, Rows(np.array([0, 1, 4]), np.array([2, 0, 4])), epoch=1, world_size=2)
    assert found.position.tolist() == [5, 0, 10]
    assert found.step.tolist() == [5, 4, 6]
    assert found.rank.tolist() == [1, 0, 0]
    assert found.slot.tolist() == [0, 0, 1]
    assert pairs(members(order, 7)) == [(4, 3), (2, 1), (4, 0)]
