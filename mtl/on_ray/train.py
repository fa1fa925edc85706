"""The driver's side of a training job on Ray: start the workers, show what they say, pass on a stop."""

import tempfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from mtl.config import Config, parse
from mtl.console import RunConsole
from mtl.errors import MtlError, ResourceError
from mtl.job import Job
from mtl.limit import Limit
from mtl.logs import Logs
from mtl.memory import HOST, attributed
from mtl.on_ray.channel import Channel, ChannelLost, Event
from mtl.on_ray.cluster import joined, labels
from mtl.on_ray.failures import TRAIN_LOST, Failures, first_line, killed_for_memory
from mtl.on_ray.listener import Listener
from mtl.on_ray.notices import diverted
from mtl.on_ray.runtime import RayRuntime
from mtl.on_ray.signals import Signals
from mtl.on_ray.watchdog import States
from mtl.record import read
from mtl.rewind import persevere
from mtl.session import train as owned
from mtl.store import Store, open_store

Result = dict[str, Any]


def train(config: Config, console: RunConsole) -> Result:
    """Train on the cluster at hand.

    Raises:
        MtlError: also one that a worker raised, unchanged.
    """

    def launch(owner: str) -> Result:
        least, most = config.resources.min_workers, config.resources.workers
        console.line(f"starting {f'{least} to ' if least else ''}{most} workers")
        over = Limit(config.max_hours, console.line)
        with Signals(console.line) as stopping:
            return fit(config, owner, console, lambda: stopping() or over())

    with joined(config):
        return owned(config, console, launch)


def fit(config: Config, owner: str, listen: Callable[[Event], None], stopping: Callable[[], bool]) -> Result:
    """Train a run that `owner` has acquired, on workers of their own, from any thread of a driver or a trial.

    Args:
        listen: called with every event of rank 0, in the thread that called.
        stopping: asked twice a second whether the workers shall commit and stop.

    Returns:
        The result; after a stop while there were no workers, its status and the steps committed before.

    Raises:
        ResourceError: there were no workers for `resources.pending_deadline_s`.
        MtlError: also one that a worker raised, unchanged.
    """
    store = open_store(config.storage).child(config.name)
    record, failures = read(store), 0
    logs = Logs(store, record.attempt + 1 if record else 1)
    try:
        while True:
            listener = Listener(config.resources, Channel, listen, logs)
            try:
                return _fit(config, owner, listener, stopping, store, failures)
            except (ChannelLost, *TRAIN_LOST) as error:
                # Train restarts workers that fail, and neither its own actors nor our mailbox; Ray's memory monitor
                # ends those as well.
                failures += max(listener.failures, 1)
                cause = getattr(error, "controller_failure", error)
                final = isinstance(cause, MtlError) and not isinstance(cause, ChannelLost)
                if final or failures > config.resources.max_failures or stopping():
                    raise
                listener.abort()
                listener.say(f"Ray Train failed and begins anew: {first_line(cause)}")
    except BaseException as error:
        told = _readable(error)
        logs.say(f"{type(told).__name__}: {told}")
        if told is error:
            raise
        raise told from error
    finally:
        logs.ship()


def _fit(
    config: Config, owner: str, listener: Listener, stopping: Callable[[], bool], store: Store, failures: int
) -> Result:
    """One life of Train's controller, with the restarts of workers that are left after so many failures."""
    asked = False
    with (
        tempfile.TemporaryDirectory(prefix="mtl-", ignore_cleanup_errors=True) as scratch,
        diverted(partial(listener.logs.add, "ray")),
    ):
        trainer = _trainer(config, owner, listener.channel, Path(scratch), config.resources.max_failures - failures)
        outcome: list[Result | BaseException] = []

        def run() -> None:
            try:
                result: Result = trainer.fit().return_value or {}
                outcome.append(result)
            except BaseException as error:
                outcome.append(error)

        # Off the main thread Ray installs no handler of SIGINT, so that a stop is ours to carry out.
        fitting = threading.Thread(target=run, name="fit", daemon=True)
        fitting.start()
        try:
            while fitting.is_alive():
                fitting.join(timeout=0.5)
                if not asked and stopping():
                    asked = True
                    listener.channel.request_stop()
                listener.attend()
                if asked and listener.waiting and fitting.is_alive() and listener.abort():
                    return _stopped(store)
            listener.attend()
        except ChannelLost:
            # A controller that we do not know of yet ends with its workers, which hear nothing either.
            while fitting.is_alive() and not listener.abort():
                fitting.join(timeout=0.5)
            raise
    result = outcome[0]
    if isinstance(result, BaseException):
        raise result
    return result


def _trainer(config: Config, owner: str, channel: Channel, scratch: Path, max_failures: int) -> TorchTrainer:
    resources = config.resources
    each: dict[str, float] = {"CPU": resources.cpus_per_worker}
    if resources.gpu:
        each["GPU"] = 1
    # Typed as users' callbacks; Train calls its own kind too, and only those hear of states.
    callbacks: list[Any] = [Failures(channel), States(channel)]
    return TorchTrainer(
        _work,
        train_loop_config={"config": config.to_yaml(), "owner": owner, "channel": channel},
        torch_config=TorchConfig(backend="nccl" if resources.gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=(resources.min_workers, resources.workers) if resources.min_workers else resources.workers,
            elastic_resize_monitor_interval_s=resources.resize_s,
            use_gpu=resources.gpu,
            resources_per_worker=each,
            label_selector=labels(resources) or None,
        ),
        run_config=RunConfig(
            name=config.name,
            storage_path=str(scratch),
            failure_config=FailureConfig(max_failures=max_failures),
            callbacks=callbacks,
        ),
    )


def _work(arguments: dict[str, Any]) -> Result:
    config = parse(arguments["config"])
    runtime = RayRuntime(get_device(), config.resources.cpus_per_worker, arguments["channel"])
    try:
        with attributed(config, runtime.world_size):
            return persevere(lambda: Job(config, runtime, arguments["owner"]).run())
    finally:
        runtime.close()


def _stopped(store: Store) -> Result:
    record = read(store)
    return {"status": "stopped", "steps": record.checkpoints[0].step if record and record.checkpoints else 0}


def _readable(error: BaseException) -> BaseException:
    if isinstance(error, WorkerGroupError):
        rank, cause = next(iter(error.worker_failures.items()))
        whose, what = f"The machine of worker {rank}", f"Worker {rank} failed"
    elif isinstance(error, TRAIN_LOST):
        cause = getattr(error, "controller_failure", error)
        whose, what = "A machine", "Ray Train failed"
    else:
        return error
    if isinstance(cause, MtlError):
        return cause
    if killed_for_memory(cause):
        text = f"{whose} ran out of memory, and the restarts allowed are used up."
        return ResourceError(text, got=first_line(cause), do=HOST)
    logs = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs"  # pyright: ignore
    return MtlError(
        f"{what}, and the restarts allowed are used up.",
        got=str(cause).strip(),
        do=f"read the workers' logs in {logs}; rerunning the command resumes from the last commit",
    )
