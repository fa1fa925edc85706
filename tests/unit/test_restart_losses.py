"""What a restart costs, counted on a clock that is made up."""

import pytest

from mtl.on_ray.losses import Losses
from mtl.on_ray.pulse import Sighting
from tests.unit.test_pulse import pulse


class Driver:
    def __init__(self) -> None:
        self.now_s = 1000.0
        self.losses = Losses(clock=lambda: self.now_s)

    def train(self, seconds: int, steps: int = 10) -> None:
        for _ in range(seconds):
            self.now_s += 1
            self.losses.seen([Sighting(pulse(0, steps), 0, 0)])

    def hang(self, seconds: int) -> None:
        for second in range(seconds):
            self.now_s += 1
            self.losses.seen([Sighting(pulse(0), second + 1, second + 1)])


@pytest.fixture
def driver() -> Driver:
    return Driver()


def test_steps_since_the_commit_are_lost_and_not_the_time_of_a_hang(driver: Driver) -> None:
    driver.train(30)
    driver.losses.committed()
    driver.train(12)
    driver.hang(300)
    assert driver.losses.end("hang") == {"cause": "hang", "replayed_s": 12.0}


def test_without_a_commit_all_steps_are_lost(driver: Driver) -> None:
    driver.train(60, steps=2)
    driver.train(21)
    assert driver.losses.end("failed")["replayed_s"] == 20.0, "from the first step on"


def test_workers_that_never_trained_lose_nothing(driver: Driver) -> None:
    driver.train(60, steps=2)
    assert driver.losses.end("failed")["replayed_s"] == 0.0
    driver.losses.seen([])
    assert driver.losses.end("failed")["replayed_s"] == 0.0


def test_each_group_of_workers_has_its_own(driver: Driver) -> None:
    driver.train(30)
    driver.losses.end("failed")
    driver.now_s += 500
    driver.train(6)
    assert driver.losses.end("failed")["replayed_s"] == 5.0
