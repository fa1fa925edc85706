"""The bound on concurrent requests."""

import threading
from contextlib import ExitStack

from mtl.store.throttle import Throttle


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def test_what_is_under_way_together_counts_once() -> None:
    throttle = Throttle(Clock())
    with ExitStack() as slots:
        began = [slots.enter_context(throttle.slot()) for _ in range(10)]
        for since in began:
            throttle.slow_down(since)
        assert throttle.bound == 7
    with throttle.slot() as since:
        throttle.slow_down(since)
    assert throttle.bound == 1


def test_a_bound_never_falls_below_one_and_recovers() -> None:
    throttle = Throttle(Clock())
    for _ in range(100):
        with throttle.slot() as since:
            throttle.slow_down(since)
    assert throttle.bound == 1
    bounds = []
    for _ in range(10):
        throttle.delivered()
        bounds.append(throttle.bound)
    assert bounds == sorted(bounds)
    assert 5 < bounds[-1] < 8
    for _ in range(100_000):
        throttle.delivered()
    assert throttle.bound == 256


def test_a_thread_beyond_the_bound_waits_for_a_place() -> None:
    throttle = Throttle(Clock())
    with throttle.slot() as since:
        throttle.slow_down(since)
    inside, leave, second = threading.Event(), threading.Event(), threading.Event()

    def hold() -> None:
        with throttle.slot():
            inside.set()
            leave.wait()

    def enter() -> None:
        with throttle.slot():
            second.set()

    threads = [threading.Thread(target=hold), threading.Thread(target=enter)]
    threads[0].start()
    inside.wait()
    threads[1].start()
    assert not second.wait(0.05)
    leave.set()
    for thread in threads:
        thread.join()
    assert second.is_set()
