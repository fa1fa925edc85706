"""How long a driver waits for workers, told by states that are made up."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.exceptions import RayActorError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2.api.exceptions import PreemptionError
from ray.train.v2.api.preemption import PreemptionInfo

from mtl.config import Resources
from mtl.errors import ResourceError
from mtl.on_ray.channel import Channel
from mtl.on_ray.watchdog import States, Watchdog


class Driver:
    """A watchdog with a clock of its own, and what it killed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **resources: Any) -> None:
        self.now_s, self.killed = 0.0, list[Any]()
        self.watchdog = Watchdog(Resources(pending_deadline_s=60, **resources), clock=lambda: self.now_s)
        monkeypatch.setattr("mtl.on_ray.claims.end", lambda *what: self.killed.append(what))
        monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 4.0, "memory": 1e9})
        monkeypatch.setattr("ray.available_resources", lambda: {"memory": 1e9})

    def enter(self, *states: str) -> None:
        of = {"kind": "state", "controller": "controller", "claim": "claim"}
        assert all(self.watchdog.heard({**of, "name": state}) for state in states)

    def after(self, seconds: float) -> None:
        self.now_s += seconds
        self.watchdog.check()


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    return Driver(monkeypatch, workers=8, cpus_per_worker=2)


def test_the_first_wait_begins_with_the_driver(driver: Driver) -> None:
    assert driver.watchdog.waiting
    driver.after(59)
    driver.enter("SchedulingState", "ReschedulingState", "SchedulingState")
    with pytest.raises(ResourceError, match="could not be had in time") as caught:
        driver.after(1)
    assert driver.killed == [("controller", "claim")]
    error = caught.value
    assert error.got == "none after 60 s; the cluster has 4 CPUs (0 free)"
    assert error.expected == "8 workers with 2 CPUs each"
    assert "pending-deadline-s" in str(error.do)


def test_workers_are_never_waited_for_while_they_train(driver: Driver) -> None:
    driver.after(59)
    driver.enter("SchedulingState", "RunningState")
    assert not driver.watchdog.waiting
    driver.after(1e6)
    driver.enter("PreemptingState")
    driver.after(1e6)
    assert driver.killed == []


def test_each_loss_begins_a_wait_of_its_own(driver: Driver) -> None:
    for _ in range(3):
        driver.after(50)
        driver.enter("RunningState")
        driver.after(100)
        driver.enter("RestartingState", "SchedulingState")
        assert driver.watchdog.waiting
    with pytest.raises(ResourceError):
        driver.after(60)


def test_what_was_asked_for_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(monkeypatch, workers=2, gpu=True, accelerator="L4")
    driver.after(119)
    with pytest.raises(ResourceError, match="2 workers with 1 CPUs and a GPU each, on nodes with L4"):
        driver.after(1)
    assert driver.killed == [], "there was no controller yet, and it was waited for"
    assert not driver.watchdog.abort()


class Lost:
    def __init__(self, error: Exception | None) -> None:
        self.training_failed_error = error


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (PreemptionError(PreemptionInfo(None, {"a": [0]}), drain_timed_out=True), "preempted"),
        (WorkerGroupError("", {0: ValueError(), 1: RayActorError(preempted=True)}), "preempted"),
        (WorkerGroupError("", {0: ValueError(), 1: RayActorError()}), "failed"),
        (ControllerError(ValueError()), "failed"),
    ],
)
def test_why_workers_are_lost(error: Exception, cause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(current_actor="controller"))
    sent: list[dict[str, Any]] = []
    states = States(cast("Channel", SimpleNamespace(put=sent.append)))
    states.after_controller_start(cast("TrainRunContext", SimpleNamespace(run_id="7")))
    states.after_controller_state_update(None, Lost(error))
    assert sent == [{"kind": "state", "name": "Lost", "cause": cause, "controller": "controller", "claim": "train-7"}]


def test_other_events_are_for_others(driver: Driver) -> None:
    assert not driver.watchdog.heard({"kind": "note", "text": "hello"})
