"""Balance is known before the start: never worse than said."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl.data.balance import balance, balances


@given(st.integers(1, 300), st.data())
def test_balance_is_the_share_of_work_when_all_wait_for_the_slowest(lanes: int, data: st.DataObject) -> None:
    world_size = data.draw(st.integers(1, lanes))
    loads = np.bincount(np.arange(lanes) % world_size, minlength=world_size)
    assert balance(lanes, world_size) == pytest.approx(loads.sum() / (world_size * loads.max()))
    assert (balance(lanes, world_size) == 1) == (lanes % world_size == 0)


def test_balances_are_told_in_one_line() -> None:
    assert balances(16, 3, range(1, 17)) == "balance 89% with 3, 100% with 1, 2, 4, 8, 16, at worst 53% with 15"
    assert balances(4, 2, [1, 2]) == "balance 100% with 2, 100% with 1, 2"
    assert balances(2520, 100, range(1, 2521)).count(",") < 10
