"""A sweep on Ray: Tune decides when a trial runs and whether it goes on, each trial trains on workers of its own.

What Tune keeps lies in a scratch folder and is never restored. The board, that is sweep.json, hands out the trials and
takes in how they end. A trial that is to be pruned is asked to commit and stop, like any run: Tune's own way, to kill
the trial's actor, would leave its workers' placement group behind.
"""

import json
import math
import os
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, final

import ray
from ray import tune
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.tune.execution import class_cache
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search import Searcher

from mtl.console import counted
from mtl.errors import MtlError
from mtl.limit import Limit
from mtl.on_ray.channel import Channel
from mtl.on_ray.cluster import joined, usable
from mtl.on_ray.outage import wait_for_head
from mtl.on_ray.signals import Signals
from mtl.session import Says
from mtl.sweep.board import Board
from mtl.sweep.capacity import at_once

ENVIRONMENT = {
    # Tune's own files of every result: metrics are in each trial's run.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Scores are computed in the driver, from what trials report.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # Tune's own tables: the board says what happens, in one line each.
    "RAY_AIR_NEW_OUTPUT": "0",
    # A failed trial is told by the board, in one message.
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # Snapshots of Tune's state, which nobody restores.
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
}
"""Set in the driver, for Tune, unless the user set them; docs/operations.md says the same."""

TRIAL = {"CPU": 0, "node:__internal_head__": 0.001}
"""What a trial holds besides its workers: nothing that they could wait for. Tune refuses a trial that holds nothing."""


def run(board: Board, console: Says) -> None:
    """Execute what is left of the sweep; SIGTERM or SIGINT lets all trials commit and stops.

    Raises:
        ResourceError: not even one trial fits on the cluster.
        MtlError: a baseline failed, or storage did.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Tune would copy the driver's credentials into the trials' runtime environment, where every user of Ray sees them.
    class_cache.ENV_VARS_TO_PROPAGATE = {n for n in class_cache.ENV_VARS_TO_PROPAGATE if not n.startswith("AWS_")}
    console.line("joining Ray")
    with joined(board.config), _scratch() as scratch:
        together = _together(board)
        console.line(
            f"{counted(together, 'trial')} at a time, {counted(board.config.resources.workers, 'worker')} each"
        )
        _execute(board, console, together, scratch)


def _together(board: Board) -> int:
    resources, asked = board.config.resources, board.sweep.concurrent
    if is_autoscaler_v2(fetch_from_server=True):
        return asked or 1  # nodes come when trials ask for them, so there is nothing to count
    fitting = at_once(resources, [node["Resources"] for node in usable(ray.nodes(), resources)])
    return min(fitting, asked or fitting)


def _execute(board: Board, console: Says, together: int, scratch: str) -> None:
    channel, conduct = Channel(partial(wait_for_head, console.line)), Conduct(board)
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(_trial, channel=channel), TRIAL),
        tune_config=tune.TuneConfig(
            search_alg=Trials(conduct),
            scheduler=Halving(conduct, channel.request_stop),
            num_samples=-1,
            max_concurrent_trials=together,
            reuse_actors=True,
            trial_name_creator=lambda trial: trial.config["trial"],
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="sweep",
            storage_path=scratch,
            failure_config=tune.FailureConfig(max_failures=2),
            verbose=0,
        ),
    )
    outcome: list[BaseException] = []

    def fit() -> None:
        try:
            tuner.fit()
        except BaseException as error:
            outcome.append(error)

    # Off the main thread Tune installs no handler of SIGINT, so that a stop is ours to carry out.
    running = threading.Thread(target=fit, name="tune", daemon=True)
    running.start()
    over = Limit(board.config.max_hours, console.line)
    with Signals(console.line) as stopping:
        while running.is_alive():
            running.join(timeout=0.5)
            if (stopping() or over() or conduct.error is not None) and not board.stopping:
                board.stopping = True
                channel.request_stop()
            for event in channel.drain():
                board.tell(event["trial"], event["text"])
    if conduct.error is not None:
        raise conduct.error
    if outcome:
        raise outcome[0]


def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="mtl-", ignore_cleanup_errors=True)


def _trial(config: dict[str, Any], channel: Channel) -> dict[str, Any]:
    from mtl.on_ray.trial import run  # loads torch, which the driver does without

    return run(config["trial"], config["config"], channel)


@final
class Conduct:
    """The board as Tune's hooks use it. Tune hides an error raised in a hook, so the first one is kept and shown."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self.names: dict[str, str] = {}
        self.error: MtlError | None = None

    def __reduce__(self) -> tuple[type[object], tuple[()]]:
        return object, ()  # Tune pickles its hooks for a restoration that is not ours

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """What Tune is to start as its trial `trial_id`; None to wait, FINISHED at the end."""
        try:
            if self.error is not None or self.board.complete:
                return Searcher.FINISHED
            trial = self.board.next()
        except MtlError as error:
            self.error = self.error or error
            return Searcher.FINISHED
        if trial is None:
            return None
        self.names[trial_id] = trial.id
        return {"trial": trial.id, "config": self.board.terms.config_of(trial).to_yaml()}

    def report(self, name: str, result: dict[str, Any]) -> float | None:
        """The score of trial `name` with this result, None where it is not to be judged."""
        try:
            return self.board.report(name, result["epoch"], json.loads(result["val"]))
        except MtlError as error:
            self.error = self.error or error
            return None

    def end(self, trial_id: str, result: dict[str, Any] | None) -> None:
        """Tell the board how Tune's trial `trial_id` ended; without a result its process died."""
        name, result = self.names.pop(trial_id), result or {}
        val, test = (json.loads(result.get(split, "{}")) for split in ("val", "test"))
        failure = result.get("error") or "the process of the trial died three times"
        try:
            match result.get("outcome"):
                case "finished":
                    self.board.end(name, "finished", val=val, test=test)
                case "stopped":
                    self.board.end(name, "stopped")
                case _:
                    self.board.end(name, "failed", error=failure)
        except MtlError as error:
            self.error = self.error or error


@final
class Trials(Searcher):
    """Hands Tune the trials of the board."""

    def __init__(self, conduct: Conduct) -> None:
        super().__init__()
        self._conduct = conduct

    def suggest(self, trial_id: str) -> Any:
        """The next trial; None while the board waits for others, FINISHED when there are no more."""
        return self._conduct.suggest(trial_id)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the board."""
        self._conduct.end(trial_id, None if error else result)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the board is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""


@final
class Halving(TrialScheduler):
    """Asynchronous successive halving over epochs, which asks instead of killing, and goes on where a driver died.

    Baselines are never judged, nor is a trial after its last epoch.

    Args:
        stop: asks the trial of this name to commit and stop.
    """

    def __init__(self, conduct: Conduct, stop: Callable[[str], None]) -> None:
        super().__init__()
        board = conduct.board
        self._conduct, self._stop, self._epochs = conduct, stop, board.config.epochs
        self._judge: Any = ASHAScheduler(
            time_attr="epoch",
            metric="score",
            mode="max",
            max_t=self._epochs,
            grace_period=board.terms.grace,
            reduction_factor=board.sweep.reduction,
        )
        self._judged: dict[str, SimpleNamespace] = {}
        for trial in board.trials:
            if trial.kind == "sampled":
                for epoch, value in trial.history:
                    self._is_good(trial.id, epoch, board.objective.score(value))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Always to go on; a trial that others leave behind is asked to commit and stop."""
        if "val" in result and "outcome" not in result:
            name = trial.config["trial"]
            score = self._conduct.report(name, result)
            if score is not None and not self._is_good(name, result["epoch"], score):
                self._conduct.board.prune(name)
                self._stop(name)
        return TrialScheduler.CONTINUE

    def choose_trial_to_run(self, tune_controller: Any, **_: Any) -> Any:
        """The first that waits: the board has the order."""
        return self._judge.choose_trial_to_run(tune_controller)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Nothing yet: it is judged by its results."""

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Nothing: it may go on."""

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Nothing new: its last epoch has been reported."""

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Nothing: what it has shown still counts."""

    def debug_string(self) -> str:
        """What Tune would print."""
        return self._judge.debug_string()

    def _is_good(self, name: str, epoch: int, score: float) -> bool:
        if epoch >= self._epochs:
            return True
        if not math.isfinite(score):  # no percentile could be taken of it
            return False
        if name not in self._judged:
            self._judged[name] = SimpleNamespace(trial_id=name)
            self._judge.on_trial_add(None, self._judged[name])
        result = {"epoch": epoch, "score": score}
        return self._judge.on_trial_result(None, self._judged[name], result) == TrialScheduler.CONTINUE
