"""Pauses and the budget of retries."""

import random

from hypothesis import given
from hypothesis import strategies as st

from mtl.store.patience import Patience, RetryBudget, pause_s

PATIENCE = Patience(retry_burst=5, retry_rate=2, retry_share=0.25)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@given(st.integers(1, 2000), st.integers())
def test_pauses_are_bounded_and_grow(tries: int, seed: int) -> None:
    pause = pause_s(PATIENCE, tries, random.Random(seed))
    assert 0 <= pause <= min(PATIENCE.backoff_most_s, PATIENCE.backoff_s * 2 ** min(tries - 1, 30))


def test_pauses_take_the_whole_interval() -> None:
    draw = random.Random(0)
    pauses = [pause_s(PATIENCE, 4, draw) for _ in range(1000)]
    assert min(pauses) < 0.02 < 0.78 < max(pauses)


def test_a_burst_is_free_and_then_time_pays() -> None:
    clock = Clock()
    budget = RetryBudget(PATIENCE, clock)
    assert [budget.spend() for _ in range(9)] == [0] * 5 + [0.5, 1.0, 1.5, 2.0]
    clock.now = 2.0
    assert budget.spend() == 0.5
    clock.now = 1000.0
    assert [budget.spend() for _ in range(6)] == [0] * 5 + [0.5]


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=200))
def test_retries_never_pass_burst_time_and_successes(events: list[tuple[float, bool]]) -> None:
    """Counting a retry at the moment that it was told to wait for."""
    clock = Clock()
    budget = RetryBudget(PATIENCE, clock)
    successes, times = 0, []
    for passed, success in events:
        clock.now += passed
        if success:
            budget.earn()
            successes += 1
        else:
            times.append(clock.now + budget.spend())
    for end in times:
        allowed = PATIENCE.retry_burst + PATIENCE.retry_rate * end + PATIENCE.retry_share * successes
        assert sum(time <= end for time in times) <= allowed + 1e-6
