"""The driver's watch over workers, with workers and a clock that are made up."""

import time
from typing import Any, cast

import pytest
from ray.exceptions import RayError

from mtl.config import Resources
from mtl.on_ray import heart
from mtl.on_ray.channel import Channel
from mtl.on_ray.channel import _Mailbox as Mailbox
from mtl.on_ray.heart import Heart, Watch
from mtl.on_ray.pulse import SILENT_S, Pulse, Sighting
from tests.helpers.nodes import wait_for
from tests.unit.test_pulse import pulse


class Direct:
    """A channel in this process."""

    def __init__(self) -> None:
        self.mailbox = Mailbox()
        self.away = False

    def beat(self, one: Pulse) -> bool:
        if self.away:
            raise RayError("the driver is gone")
        return self.mailbox.beat(one)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.mailbox, name)


class Watched:
    """A watch that looks once a second at what `seen` says."""

    def __init__(self) -> None:
        self.now_s, self.seen = 0.0, list[Sighting]()
        self.said, self.killed, self.asked, self.forgotten = list[str](), list[int](), 0, 0
        resources = Resources(first_step_deadline_s=900, step_deadline_s=100)
        self.watch = Watch(
            resources,
            cast("Channel", self),
            self.said.append,
            kill=lambda culprit: self.killed.append(culprit.rank),
            clock=lambda: self.now_s,
        )

    def ask_for_stacks(self) -> None:
        self.asked += 1

    def forget(self) -> None:
        self.forgotten += 1

    def look(self, seconds: int, *, training: bool = True) -> None:
        for _ in range(seconds):
            self.watch.look(self.seen, training=training)
            self.now_s += 1


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_one_that_hangs_is_named_then_all_say_where_they_are_then_it_is_killed(watched: Watched) -> None:
    watched.seen = [Sighting(pulse(0), 0, 0), Sighting(pulse(1), SILENT_S + 1, SILENT_S + 1)]
    watched.look(1)
    assert watched.said == [
        "worker 1 (process 101 on h): not heard of for 21 s; killed, so that all workers start anew"
    ]
    assert (watched.asked, watched.killed) == (1, [])
    watched.look(10)
    assert watched.killed == [1]
    watched.look(30)
    assert (watched.killed, len(watched.said)) == ([1], 1), "Ray has time to notice"
    watched.look(60)
    assert watched.killed == [1, 1], "and if it does not, it is told again"


def test_a_hang_that_ends_with_its_workers_is_forgotten(watched: Watched) -> None:
    watched.seen = [Sighting(pulse(0), 0, 101)]
    watched.look(1)
    watched.look(2, training=False)
    assert watched.forgotten == 2
    watched.seen = [Sighting(pulse(0), 0, 0)]
    watched.look(10)
    assert watched.killed == []


def test_a_worker_is_heard_until_it_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heart, "_BEAT_S", 0.01)
    channel = Direct()
    beating = Heart(cast("Channel", channel), lambda: pulse(3))
    wait_for(channel.sightings, 10, "no beat came")
    channel.ask_for_stacks()
    told: list[dict[str, Any]] = []

    def noted() -> bool:
        told.extend(event for event in channel.drain() if event["kind"] == "note")
        return bool(told)

    wait_for(noted, 10, "nobody said where it is")
    assert told[0]["text"].startswith("worker 3 (process 103 on h) is here:\n")
    assert "test_a_worker_is_heard_until_it_closes" in told[0]["text"]
    beating.close()
    assert channel.sightings() == []


def test_a_worker_whose_driver_is_gone_beats_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heart, "_BEAT_S", 0.01)
    channel = Direct()
    beating = Heart(cast("Channel", channel), lambda: pulse(3))
    channel.away = True
    wait_for(lambda: not beating._thread.is_alive(), 10, "it goes on")


def test_the_mailbox_knows_how_long_a_worker_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    mailbox = Mailbox()

    def beat(at_s: float, signs: int, pid: int = 1) -> tuple[float, float]:
        now_s[0] = at_s
        mailbox.beat(pulse(0, signs=signs, pid=pid))
        now_s[0] += 1
        (seen,) = mailbox.sightings()
        return seen.silent_s, seen.still_s

    assert [beat(0, 5), beat(10, 5), beat(20, 6), beat(30, 6)] == [(1, 1), (1, 11), (1, 1), (1, 11)]
    assert beat(40, 6, pid=2) == (1, 1), "another process is another worker"
    mailbox.leave(pulse(0, pid=1))
    assert len(mailbox.sightings()) == 1, "the one before has nothing to say any more"
    mailbox.leave(pulse(0, pid=2))
    assert mailbox.sightings() == []
