"""Rows that come more than once: how often, which, and that an epoch of an order has each of them exactly so often."""

from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl.data.lookup import members, visits
from mtl.data.order import Rows, slots
from mtl.data.repeats import Repeats, class_counts, class_factors, resolved, row_factors
from tests.helpers.orders import Case, pairs

COUNTS = st.lists(st.integers(0, 1000), min_size=1, max_size=9)
POWERS = st.sampled_from([0.25, 0.5, 1.0])


@settings(max_examples=40)
@given(st.lists(st.lists(st.integers(1, 4), max_size=6), min_size=1, max_size=6), st.integers(0, 9), st.integers(1, 4))
def test_an_epoch_has_each_copy_of_each_row_once(times: list[list[int]], seed: int, world_size: int) -> None:
    repeats = made(times)
    case = Case(rows=tuple(repeats.rows.tolist()), seed=seed, lanes=4)
    order = case.order()
    for epoch in range(2):
        seen: Counter[tuple[int, int]] = Counter()
        for batch in range(order.steps):
            for rank in range(world_size):
                held = slots(order, batch, rank, world_size)
                rows = order.epoch(epoch).at(held[held >= 0])
                seen.update((group, int(repeats.on_storage(group)[row])) for group, row in pairs(rows))
        expected = {(g, row): n for g, group in enumerate(times) for row, n in enumerate(group)}
        assert seen == expected


@given(st.lists(st.lists(st.integers(1, 255), max_size=6), max_size=6))
def test_rows_as_they_are_read_and_on_storage(times: list[list[int]]) -> None:
    repeats = made(times)
    assert repeats.rows.tolist() == [sum(group) for group in times]
    first = np.cumsum([0, *map(len, times)])
    numbers = [first[group] + repeats.on_storage(group) for group in range(len(times))]
    assert np.concatenate([np.zeros(0, np.int64), *numbers]).tolist() == repeats.numbers.tolist()
    assert np.bincount(repeats.numbers, minlength=len(repeats.times)).tolist() == repeats.times.tolist()


def test_the_look_up_finds_all_copies_of_a_row() -> None:
    repeats = made([[1, 3, 1], [2, 1]])
    order = Case(rows=(5, 3), lanes=2, global_batch=2).order()
    copies = np.flatnonzero(repeats.on_storage(0) == 1)
    found = visits(order, Rows(np.zeros_like(copies), copies), epoch=1)
    assert len({*found.position.tolist()}) == 3
    for step, row in zip(found.step.tolist(), copies.tolist(), strict=True):
        assert (0, row) in pairs(members(order, step))


@given(COUNTS, POWERS, st.none() | st.floats(0.01, 1), st.integers(2, 255))
def test_factors_are_those_of_the_paper(counts: list[int], power: float, threshold: float | None, cap: int) -> None:
    labelled = sum(counts)
    factors = class_factors(counts, labelled, power, threshold, cap)
    for n, factor in zip(counts, factors.tolist(), strict=True):
        assert 1 <= factor <= cap
        if n:
            share = max(counts) / labelled if threshold is None else threshold
            assert factor == pytest.approx(min(max(1, (share / (n / labelled)) ** power), cap))
        else:
            assert factor == 1


def test_full_power_makes_classes_equal_and_half_of_it_their_roots() -> None:
    counts = [400, 100, 25]
    assert (class_factors(counts, 600, 1.0, None, 99) * counts).tolist() == [400] * 3
    assert (class_factors(counts, 600, 0.5, None, 99) * counts).tolist() == [400, 200, 100]
    assert class_factors(counts, 600, 0.5, 0.1, 99).tolist() == [1, 1, pytest.approx((60 / 25) ** 0.5)]


@given(st.integers(1, 10**9), st.integers(1, 9), POWERS)
def test_equal_classes_are_left_alone(rows: int, classes: int, power: float) -> None:
    assert (class_factors([rows] * classes, rows * classes, power, None, 10) == 1).all()


def test_rows_have_the_largest_factor_of_their_classes() -> None:
    factors = np.array([1.0, 2.5, 4.0])
    assert row_factors(np.array([2, -1, 0, 1]), factors).tolist() == [4, 1, 1, 2.5]
    several = np.array([[1, 1, 0], [0, 0, 0], [-1, -1, -1], [1, -1, 1]])
    assert class_counts(several, 3).tolist() == [2, 1, 1]
    assert class_counts(np.array([2, -1, 0, 2]), 4).tolist() == [1, 0, 2, 0]
    assert row_factors(several, factors).tolist() == [2.5, 1, 1, 4]


@given(st.floats(1, 40), st.integers(0, 2**63), st.integers(0, 10**9))
def test_fractions_are_drawn_by_row_and_right_on_average(factor: float, seed: int, first: int) -> None:
    n = 4000
    times = resolved(np.full(n, factor), first, seed)
    assert {*times.tolist()} <= {int(factor), int(np.ceil(factor))}
    assert abs(times.mean() - factor) < 6 * 0.5 / n**0.5
    assert times[700:].tolist() == resolved(np.full(n - 700, factor), first + 700, seed).tolist()


def test_golden_times() -> None:
    assert resolved(np.full(12, 2.5), 5, 7).tolist() == [3, 3, 2, 3, 2, 3, 2, 3, 3, 3, 3, 2]
    assert made([[1, 2], [3]]).digest != made([[1, 2], [2]]).digest


def made(times: list[list[int]]) -> Repeats:
    flat: npt.NDArray[np.uint8] = np.array([n for group in times for n in group], np.uint8)
    return Repeats.of(flat, np.array([len(group) for group in times], np.int64))
