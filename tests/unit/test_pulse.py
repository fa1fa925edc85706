"""What a driver concludes from signs of life."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl.on_ray.pulse import SILENT_S, WINDOW_S, Hang, Pulse, Sighting, Stragglers, hang, stacks

DEADLINES = {"first_step_deadline_s": 900.0, "step_deadline_s": 100.0}


def pulse(rank: int, steps: int = 10, **more: Any) -> Pulse:
    values = {"pid": 100 + rank, "node": "n", "host": "h", "signs": 0, "forwards": 0, "forward_s": 0.0, **more}
    return Pulse(rank=rank, steps=steps, **values)


def judged(*seen: Sighting) -> Hang | None:
    return hang(seen, **DEADLINES)


def ranks(found: Hang | None) -> list[int]:
    return [culprit.rank for culprit in found.culprits] if found else []


def test_nobody_is_nobody() -> None:
    assert judged() is None


@given(st.lists(st.tuples(st.integers(0, 9), st.floats(0, SILENT_S), st.floats(0, 100)), min_size=1, max_size=5))
def test_whoever_is_heard_and_goes_on_in_time_is_well(workers: list[tuple[int, float, float]]) -> None:
    seen = [Sighting(pulse(rank, steps), silent, still) for rank, (steps, silent, still) in enumerate(workers)]
    assert judged(*seen) is None


def test_the_silent_one_hangs_and_not_those_that_wait_for_it() -> None:
    found = judged(Sighting(pulse(0), 0.5, 21), Sighting(pulse(1), 21.4, 21.4))
    assert ranks(found) == [1]
    assert found is not None
    assert found.text == "worker 1 (process 101 on h): not heard of for 21 s"


def test_a_worker_that_fell_silent_soon_after_its_first_step_hangs() -> None:
    assert ranks(judged(Sighting(pulse(0, 6), 0.5, 21), Sighting(pulse(1, 0), 21, 21))) == [1]


def test_one_that_goes_on_keeps_the_others_alive() -> None:
    assert judged(Sighting(pulse(0), 0, 1), Sighting(pulse(1), 0, 1e6)) is None


def test_those_behind_hang_where_all_are_heard() -> None:
    found = judged(Sighting(pulse(0, 8), 0, 101), Sighting(pulse(1, 7), 0, 102), Sighting(pulse(2, 8), 0, 101))
    assert ranks(found) == [1]
    assert found is not None
    assert found.text == "worker 1 (process 101 on h): no progress for 101 s"
    assert ranks(judged(Sighting(pulse(0), 0, 101), Sighting(pulse(1), 0, 101))) == [0, 1]


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_the_first_step_may_take_long(steps: int) -> None:
    slow = Sighting(pulse(0, 3), 0, 800), Sighting(pulse(1, steps), 800, 800)
    assert judged(*slow) is None
    assert ranks(judged(Sighting(pulse(0, 3), 0, 901), Sighting(pulse(1, steps), 0, 901))) == [1]
    assert ranks(judged(Sighting(pulse(0, 3), 0, 901), Sighting(pulse(1, steps), 901, 901))) == [1]


def windows(*each_s: list[float], forwards: int = 100, pid: int = 7) -> list[str]:
    """What is said of workers whose forward passes take `each_s` in one window after the other."""
    stragglers, said, done = Stragglers(), list[str](), [0.0] * len(each_s[0])
    for number, took in enumerate([[0.0] * len(done), *each_s]):
        done = [total + forwards * one for total, one in zip(done, took, strict=True)]
        seen = [
            Sighting(pulse(rank, pid=pid, forwards=number * forwards, forward_s=total), 0, 0)
            for rank, total in enumerate(done)
        ]
        said += stragglers(seen, number * WINDOW_S)
        assert stragglers(seen, number * WINDOW_S + 1) == []
    return said


def test_a_straggler_is_named_once() -> None:
    slow = [0.1, 0.1, 0.3, 0.1]
    assert windows(slow, slow, slow) == [
        "worker 2 (process 7 on h) is slow: 3.0 times the median time of a forward pass"
    ]


def test_of_two_the_slower_is_the_straggler() -> None:
    assert len(windows([0.2, 0.1])) == 1


def test_small_differences_and_short_windows_are_no_stragglers() -> None:
    assert windows([0.1, 0.14], [0.14, 0.1]) == []
    assert windows([1e-4, 5e-4]) == [], "less than a second of forward passes"
    assert windows([0.1, 0.5], forwards=0) == [], "no forward passes"


def test_stacks_name_this_function() -> None:
    assert "test_stacks_name_this_function" in stacks()
