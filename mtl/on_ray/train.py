"""The driver's side of a training job on Ray: start the workers, show what they say, pass on a stop."""

import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from mtl.config import Config, parse
from mtl.console import RunConsole
from mtl.errors import MtlError
from mtl.job import Job
from mtl.on_ray.channel import Channel, Event
from mtl.on_ray.cluster import joined, labels
from mtl.on_ray.failures import Failures
from mtl.on_ray.runtime import RayRuntime
from mtl.on_ray.signals import Signals
from mtl.session import train as owned

Result = dict[str, Any]


def train(config: Config, console: RunConsole) -> Result:
    """Train on the cluster at hand.

    Raises:
        MtlError: also one that a worker raised, unchanged.
    """

    def launch(owner: str) -> Result:
        console.line(f"starting {config.resources.workers} workers")
        with Signals(console.line) as stopping:
            return fit(config, owner, console, stopping)

    with joined(config):
        return owned(config, console, launch)


def fit(config: Config, owner: str, listen: Callable[[Event], None], stopping: Callable[[], bool]) -> Result:
    """Train a run that `owner` has acquired, on workers of their own, from any thread of a driver or a trial.

    Args:
        listen: called with every event of rank 0, in the thread that called.
        stopping: asked twice a second whether the workers shall commit and stop.

    Raises:
        MtlError: also one that a worker raised, unchanged.
    """
    channel, asked = Channel(), False
    with tempfile.TemporaryDirectory(prefix="mtl-") as scratch:
        trainer = _trainer(config, owner, channel, Path(scratch))
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
        while fitting.is_alive():
            fitting.join(timeout=0.5)
            if not asked and stopping():
                asked = True
                channel.request_stop()
            for event in channel.drain():
                listen(event)
        for event in channel.drain():
            listen(event)
    if isinstance(outcome[0], BaseException):
        raise _readable(outcome[0])
    return outcome[0]


def _trainer(config: Config, owner: str, channel: Channel, scratch: Path) -> TorchTrainer:
    resources = config.resources
    each: dict[str, float] = {"CPU": resources.cpus_per_worker}
    if resources.gpu:
        each["GPU"] = 1
    return TorchTrainer(
        _work,
        train_loop_config={"config": config.to_yaml(), "owner": owner, "channel": channel},
        torch_config=TorchConfig(backend="nccl" if resources.gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.gpu,
            resources_per_worker=each,
            label_selector=labels(resources) or None,
        ),
        run_config=RunConfig(
            name=config.name,
            storage_path=str(scratch),
            failure_config=FailureConfig(max_failures=resources.max_failures),
            callbacks=[Failures(channel)],
        ),
    )


def _work(arguments: dict[str, Any]) -> Result:
    config = parse(arguments["config"])
    runtime = RayRuntime(get_device(), config.resources.cpus_per_worker, arguments["channel"])
    return Job(config, runtime, arguments["owner"]).run()


def _readable(error: BaseException) -> BaseException:
    if isinstance(error, ControllerError) and isinstance(error.controller_failure, MtlError):
        return error.controller_failure
    if not isinstance(error, WorkerGroupError):
        return error
    rank, cause = next(iter(error.worker_failures.items()))
    if isinstance(cause, MtlError):
        return cause
    logs = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs"  # pyright: ignore
    return MtlError(
        f"Worker {rank} failed, and the restarts allowed are used up.",
        got=str(cause).strip(),
        do=f"read the workers' logs in {logs}; rerunning the command resumes from the last commit",
    )
