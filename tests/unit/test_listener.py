"""What becomes of what a driver hears."""

from typing import Any, cast

import pytest

from mtl.config import Resources
from mtl.logs import Logs
from mtl.on_ray.channel import Channel
from mtl.on_ray.channel import _Mailbox as Mailbox
from mtl.on_ray.listener import Listener
from tests.helpers.memory_store import MemoryStore
from tests.unit.test_pulse import pulse


class Driver:
    """A driver whose workers and controller are made up."""

    def __init__(self) -> None:
        self.mailbox, self.store, self.shown = Mailbox(), MemoryStore(), list[dict[str, Any]]()
        logs = Logs(self.store, 1)
        self.listener = Listener(Resources(), lambda _: cast("Channel", self.mailbox), self.shown.append, logs)

    def hear(self, **event: Any) -> None:
        self.mailbox.put(event)
        self.listener.attend()

    def enter(self, state: str, cause: str) -> None:
        self.hear(kind="state", name=state, cause=cause, controller="controller", claim="claim")

    def log(self, source: str) -> str:
        return "".join(self.store.get(key).decode() for key in self.store.list(f"logs/a1/{source}-"))


@pytest.fixture
def driver() -> Driver:
    return Driver()


def test_events_are_shown_and_kept_with_the_next_commit(driver: Driver) -> None:
    driver.hear(kind="note", text="hello")
    driver.hear(kind="log", source="worker-1-17", text="a warning\n")
    assert driver.store.list("logs/") == []
    driver.hear(kind="commit", step=3, seconds=0.1)
    assert [event["kind"] for event in driver.shown] == ["note", "commit"]
    assert [line.partition("  ")[2] for line in driver.log("driver").splitlines()] == [
        "hello",
        "commit at step 3 (0.1 s)",
    ]
    assert driver.log("worker-1-17") == "a warning\n"


def test_a_restart_is_told_to_the_next_workers(driver: Driver) -> None:
    assert driver.listener.waiting
    driver.enter("RunningState", cause="failed")
    assert not driver.listener.waiting
    driver.mailbox.beat(pulse(0))
    driver.listener.attend()
    assert driver.mailbox.loss() is None
    driver.enter("RestartingState", cause="preempted")
    assert driver.listener.waiting
    assert driver.mailbox.loss() == {"cause": "preempted", "replayed_s": 0.0}
    assert driver.mailbox.sightings() == [], "what is heard from here on is of other workers"
    assert "the workers start anew (preempted)" in driver.shown[-1]["text"]


def test_a_resize_is_a_restart_too(driver: Driver) -> None:
    driver.enter("RunningState", cause="failed")
    driver.enter("ResizingState", cause="failed")
    assert driver.mailbox.loss() == {"cause": "resized", "replayed_s": 0.0}
