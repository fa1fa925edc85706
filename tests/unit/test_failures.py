"""What Train's controller is told about workers that fail."""

from typing import Any, cast

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.context import TrainRunContext

from mtl.errors import ConfigError, MtlError, NoSpace, StoreError
from mtl.on_ray.channel import Channel, ChannelLost
from mtl.on_ray.failures import Failures

CONTEXT = cast("TrainRunContext", None)  # nobody looks at it


class Mailbox:
    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def put(self, event: dict[str, Any]) -> None:
        self.events.append(event)


@pytest.fixture
def mailbox() -> Mailbox:
    return Mailbox()


@pytest.fixture
def failures(mailbox: Mailbox) -> Failures:
    return Failures(cast("Channel", mailbox))


@pytest.mark.parametrize("error", [ConfigError("no"), NoSpace("full"), ChannelLost("gone"), MtlError("diverged")])
def test_what_no_restart_mends_ends_the_job_whoever_else_failed(
    error: MtlError, failures: Failures, mailbox: Mailbox
) -> None:
    with pytest.raises(type(error)) as caught:
        failures.after_exception(CONTEXT, {0: RuntimeError("its peer is gone"), 1: error})
    assert caught.value is error
    assert mailbox.events == []


def test_the_driver_hears_of_each_worker_in_one_line_and_keeps_the_whole(failures: Failures, mailbox: Mailbox) -> None:
    killed = WorkerHealthCheckFailedError("a worker failed", OutOfMemoryError("used 15 of 16 GB\nmuch more"))
    died = WorkerHealthCheckFailedError("a worker failed", ActorDiedError())
    away = StoreError("storage does not answer\nat all")
    failures.after_exception(CONTEXT, {0: killed, 1: died, 2: away, 3: RuntimeError()})
    notes = [event["text"] for event in mailbox.events if event["kind"] == "note"]
    assert notes[0].startswith("worker 0 was ended by Ray, because its machine ran out of memory: set a smaller")
    assert notes[1:] == [
        "worker 1 failed: its process died",
        "worker 2 failed: storage does not answer",
        "worker 3 failed: RuntimeError",
    ]
    kept = [event["source"] for event in mailbox.events if event["kind"] == "log"]
    assert kept == [f"worker-{rank}" for rank in range(4)]
