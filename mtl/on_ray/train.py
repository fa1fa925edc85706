"""The driver's side of a training job on Ray: start the workers, show what they say, pass on a stop."""

import signal
import tempfile
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from mtl.config import Config, parse
from mtl.console import RunConsole
from mtl.errors import MtlError
from mtl.job import Job
from mtl.on_ray.channel import Channel
from mtl.on_ray.cluster import joined
from mtl.on_ray.failures import Failures
from mtl.on_ray.runtime import RayRuntime
from mtl.session import train as owned

Result = dict[str, Any]


def train(config: Config, console: RunConsole) -> Result:
    """Train on the cluster at hand.

    Raises:
        MtlError: also one that a worker raised, unchanged.
    """
    with joined(config):
        return owned(config, console, lambda owner: _fit(config, owner, console))


def _fit(config: Config, owner: str, console: RunConsole) -> Result:
    channel = Channel()
    with tempfile.TemporaryDirectory(prefix="mtl-") as scratch:
        trainer = _trainer(config, owner, channel, Path(scratch))
        outcome: list[Result | BaseException] = []

        def fit() -> None:
            try:
                result: Result = trainer.fit().return_value or {}
                outcome.append(result)
            except BaseException as error:
                outcome.append(error)

        console.line(f"starting {config.resources.workers} workers")
        # Off the main thread Ray installs no handler of SIGINT, so that a stop is ours to carry out.
        fitting = threading.Thread(target=fit, name="fit", daemon=True)
        fitting.start()
        with _Signals(channel, console):
            while fitting.is_alive():
                fitting.join(timeout=0.5)
                _show(channel, console)
        _show(channel, console)
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
        scaling_config=ScalingConfig(num_workers=resources.workers, use_gpu=resources.gpu, resources_per_worker=each),
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


def _show(channel: Channel, console: RunConsole) -> None:
    for event in channel.drain():
        console(event)


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


class _Signals:
    """SIGTERM and SIGINT ask the workers to commit and stop; a second SIGINT interrupts at once."""

    def __init__(self, channel: Channel, console: RunConsole) -> None:
        self._channel, self._console = channel, console
        self._asked = False

    def __enter__(self) -> None:
        self._previous = {n: signal.signal(n, self._ask) for n in (signal.SIGTERM, signal.SIGINT)}

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self._asked:
            self._asked = True
            self._console.line("stopping: the workers commit first (Ctrl-C again to leave at once)")
            threading.Thread(target=self._channel.request_stop, daemon=True).start()
