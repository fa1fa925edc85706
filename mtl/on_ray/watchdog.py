"""What a driver knows of its workers from Train's controller: whether they train, or how long they are waited for."""

import time
from collections.abc import Callable
from typing import Any, final

import ray
from ray.exceptions import RayActorError
from ray.train import WorkerGroupError
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2.api.exceptions import PreemptionError

from mtl.config import Resources
from mtl.errors import ResourceError
from mtl.on_ray import claims
from mtl.on_ray.channel import Channel, Event

_WITH_WORKERS = ("RunningState", "PreemptingState", "ShuttingDownState", "FinishedState", "ErroredState")
_CONTROLLER_S = 60.0  # more than it ever takes to come up, so that it is not left behind


@final
class States(ControllerCallback):
    """Sends the driver every state that the controller enters, with its handle, which Train keeps to itself.

    Args:
        channel: to the driver.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._claim = ""

    def after_controller_start(self, train_run_context: TrainRunContext) -> None:
        """Note under which name the controller claims nodes."""
        self._claim = f"train-{train_run_context.run_id}"

    def after_controller_state_update(self, previous_state: object, current_state: object) -> None:
        """Send the state's name, why workers are lost where they are, and what it takes to end the controller."""
        error = getattr(current_state, "training_failed_error", None)
        event: Event = {"kind": "state", "name": type(current_state).__name__, "cause": _cause(error)}
        self._channel.put({**event, "controller": ray.get_runtime_context().current_actor, "claim": self._claim})


@final
class Watchdog:
    """How long workers have been waited for, and the end of a wait that is too long.

    Args:
        resources: what was asked for.
        clock: seconds, never going backwards.
    """

    def __init__(self, resources: Resources, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._resources, self._clock = resources, clock
        self._waiting_since: float | None = clock()
        self._controller: Any = None
        self._claim = ""

    def heard(self, event: Event) -> bool:
        """Take note of a state of the controller; whether the event was one."""
        if event["kind"] != "state":
            return False
        self._controller, self._claim = event["controller"], event["claim"]
        waiting = event["name"] not in _WITH_WORKERS
        since = self._waiting_since if self._waiting_since is not None else self._clock()
        self._waiting_since = since if waiting else None
        return True

    @property
    def waiting(self) -> bool:
        """Whether there are no workers, so that nobody would hear a request to stop."""
        return self._waiting_since is not None

    def check(self) -> None:
        """End a wait that is too long.

        Raises:
            ResourceError: there have been no workers for `pending_deadline_s`.
        """
        limit_s = self._resources.pending_deadline_s
        waited_s = self._clock() - self._waiting_since if self._waiting_since is not None else 0.0
        if waited_s < limit_s or (not self.abort() and waited_s < limit_s + _CONTROLLER_S):
            return
        resources = self._resources
        each = f"{resources.cpus_per_worker} CPUs" + (" and a GPU" if resources.gpu else "")
        raise ResourceError(
            "The workers could not be had in time.",
            got=f"none after {limit_s:g} s; the cluster has {_described()}",
            expected=f"{resources.min_workers or resources.workers} workers with {each} each"
            + (f", on nodes with {resources.accelerator}" if resources.accelerator else ""),
            do="add or free nodes, or raise --resources.pending-deadline-s; rerunning resumes from the last commit",
        )

    def abort(self) -> bool:
        """End the controller, and with it what it waits for.

        Returns:
            Whether there is one yet; before, it would come up unhindered.
        """
        if self._controller is None:
            return False
        claims.end(self._controller, self._claim)
        return True


def _cause(error: object) -> str:
    failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
    preempted = any(isinstance(one, RayActorError) and one.preempted for one in failures)
    return "preempted" if isinstance(error, PreemptionError) or preempted else "failed"


def _described() -> str:
    everything, free = ray.cluster_resources(), ray.available_resources()
    kinds = [kind for kind in ("CPU", "GPU") if everything.get(kind)]
    return ", ".join(f"{everything[kind]:g} {kind}s ({free.get(kind, 0):g} free)" for kind in kinds) or "none"
