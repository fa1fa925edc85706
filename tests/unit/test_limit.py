"""A job's time is over once, and for good."""

import pytest

from mtl.limit import Limit


@pytest.mark.parametrize("hours", [0.5, 24])
def test_the_hours_are_over_once_and_for_good(hours: float) -> None:
    now_s, said = [1000.0], list[str]()
    over = Limit(hours, said.append, clock=lambda: now_s[0])
    assert not over()
    now_s[0] += hours * 3600 - 1
    assert not over()
    assert said == []
    now_s[0] += 1
    assert over()
    assert over()
    (line,) = said
    assert f"max_hours {hours:g}" in line


def test_no_limit_is_never_over() -> None:
    now_s, said = [0.0], list[str]()
    over = Limit(None, said.append, clock=lambda: now_s[0])
    now_s[0] = 1e12
    assert not over()
    assert said == []
