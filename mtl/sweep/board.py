"""The state of a sweep: which trial to start next, and what became of those before. Everything of it is in sweep.json.

Whoever executes trials asks `next`, tells `report` and `end`; it may die at any moment. The same command then finds
what has ended, hands out first what was under way, and goes on where the choice of points had come to.
"""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, Self, final

from mtl.config import Config
from mtl.console import clock
from mtl.errors import MtlError
from mtl.lease import Lease, acquire
from mtl.store import open_store
from mtl.sweep.objective import DELTA_M, Metrics, primaries, primary, shown
from mtl.sweep.proposals import proposals
from mtl.sweep.record import TRIALS, Record, Status, SweepFile, Trial
from mtl.sweep.settings import Sweep
from mtl.sweep.terms import Terms

Outcome = Literal["finished", "stopped", "failed"]


@final
class Board:
    """A sweep, as the driver sees it; enter it to own the sweep. Safe to use from several threads.

    Constructing it reads storage and writes nothing.

    Args:
        config: what every trial has in common; its name is the sweep's.
        sweep: how to search.
        say: receives sentences for people.

    Raises:
        ConfigError: the space, the metric or the search can not be used.
        CheckpointError: a sweep of this name was begun with another space or configuration; the difference is shown.
    """

    def __init__(self, config: Config, sweep: Sweep, say: Callable[[str], None]) -> None:
        self.config, self.sweep, self._say = config, sweep, say
        self.terms = Terms(config, sweep)
        self.objective = self.terms.objective
        self.store = open_store(config.storage).child(config.name)
        self._proposals = proposals(sweep, self.terms.space, self.score)
        self._file = SweepFile(self.store)
        self.terms.check_restored(self.store, self._file.record)
        self._width = max(len(trial.id) for trial in self.terms.baselines)
        self._under_way: dict[str, Trial] = {}
        self._pruning: set[str] = set()
        self._began: dict[str, float] = {}
        self._ended, self._entered = 0, time.monotonic()
        self._lock = threading.RLock()
        self._lease: Lease | None = None
        self.stopping = False

    def __enter__(self) -> Self:
        lease = acquire(self.store, self.config.name, on_wait=self._say)
        assert isinstance(lease, Lease), "a sweep's run.json is never finished: more trials may be asked for"
        self._lease = lease
        self._file = SweepFile(self.store)
        self.terms.check_restored(self.store, self._file.record)
        self._file.change(lambda record: record, self.terms.record)
        self._entered = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._lease is not None
        try:
            self._lease.release("stopped")
        except MtlError:
            if error is None:
                raise

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All trials so far: those under way as far as this driver has seen them."""
        with self._lock:
            recorded = self._file.record.trials if self._file.record else ()
            return tuple(self._under_way.get(trial.id, trial) for trial in recorded)

    @property
    def total(self) -> int:
        """How many trials there will be, baselines included."""
        sampled = sum(trial.kind == "sampled" for trial in self.trials)
        return len(self.terms.baselines) + max(self.sweep.trials, sampled)

    @property
    def singles(self) -> dict[str, float] | None:
        """The primary metrics of the single-task baselines, by task; None until all of them have finished."""
        kinds = self.objective.kinds
        found = {
            trial.task: primaries(trial.val, {trial.task: kinds[trial.task]})[trial.task]
            for trial in self.trials
            if trial.task is not None and trial.status == "finished"
        }
        return {task: found[task] for task in kinds} if len(found) == len(kinds) else None

    def value(self, trial: Trial) -> float | None:
        """The objective of a trial that trains every task, None while it has none."""
        if trial.kind == "single" or not trial.val:
            return None
        return self.objective.value(trial.val, self.singles)

    def score(self, trial: Trial) -> float | None:
        """The objective of such a trial turned so that larger is better."""
        value = self.value(trial)
        return None if value is None else self.objective.score(value)

    @property
    def best(self) -> Trial | None:
        """The finished trial of all tasks with the best objective on the validation split."""
        scores = {
            trial.id: score
            for trial in self.trials
            if trial.status == "finished" and (score := self.score(trial)) is not None
        }
        return max((t for t in self.trials if t.id in scores), key=lambda t: scores[t.id], default=None)

    @property
    def complete(self) -> bool:
        """Whether there is nothing to hand out any more; what is under way may still end."""
        with self._lock:
            handed = self._under_way.keys() | {trial.id for trial in self.trials if self._is_over(trial)}
            return self.stopping or len(handed) >= self.total

    @property
    def finished(self) -> bool:
        """Whether every trial there is to be has ended."""
        return sum(self._is_over(trial) for trial in self.trials) >= self.total

    def next(self) -> Trial | None:
        """The next trial to start; None while that depends on trials under way, or if the sweep is `complete`.

        Baselines come first, then what an earlier driver left under way, then new points. Where the objective is
        relative to the baselines, new points wait for them.

        Raises:
            RunLost: another driver has taken over.
            StoreError: the trial could not be recorded; it must not start.
        """
        with self._lock:
            if self.complete:
                return None
            if self._lease is not None and self._lease.lost is not None:
                raise self._lease.lost
            recorded = {trial.id: trial for trial in self.trials}
            waiting = [recorded.get(trial.id, trial) for trial in self.terms.baselines]
            waiting += [trial for trial in recorded.values() if trial.kind == "sampled"]
            for trial in waiting:
                if trial.id not in self._under_way and not self._is_over(trial):
                    if trial.kind == "sampled" and self._must_wait():
                        return None
                    return self._start(trial)
            return None if self._must_wait() else self._start(self._sample())

    def report(self, name: str, epoch: int, val: Metrics) -> float | None:
        """Take in the validation metrics of a trial after `epoch` epochs. A resumed trial may repeat some.

        Returns:
            Its score, larger is better; None where none is to be judged by: a baseline, or a trial that is to stop.

        Raises:
            RunLost: another driver has taken over.
            StoreError: it could not be recorded.
        """
        with self._lock:
            trial = self._under_way[name]
            trial = trial.model_copy(update={"epoch": epoch, "val": self._judged(val)})
            value = self.value(trial)
            if value is not None:
                earlier = tuple(seen for seen in trial.history if seen[0] < epoch)
                trial = trial.model_copy(update={"history": (*earlier, (epoch, value))})
            self._under_way[name] = trial
            self._write(trial)
            shown = f"{self.objective.show(value)}  " if trial.kind != "single" else ""
            primary = "  ".join(f"{task} {text}" for task, text in self.primary(trial).items())
            self.tell(name, f"epoch {epoch}/{self.config.epochs}  {shown}{primary}")
            if trial.kind != "sampled" or value is None or name in self._pruning:
                return None
            return self.objective.score(value)

    def prune(self, name: str) -> None:
        """Record that trial `name` has been told to stop because others are better."""
        with self._lock:
            self._pruning.add(name)

    def end(
        self, name: str, outcome: Outcome, *, val: Metrics | None = None, test: Metrics | None = None, error: str = ""
    ) -> None:
        """Take in what became of a trial. One that merely stopped stays under way for the next driver.

        Raises:
            MtlError: the trial was a baseline and failed, or the outcome could not be recorded.
        """
        with self._lock:
            trial = self._under_way.pop(name)
            status: Status = "started" if outcome == "stopped" else outcome
            if outcome == "stopped" and name in self._pruning:
                status = "pruned"
            update: dict[str, Any] = {"status": status, "seconds": time.monotonic() - self._began[name]}
            update["error"] = error or None
            if outcome == "finished":
                update |= {"epoch": self.config.epochs, "val": self._judged(val), "test": self._judged(test)}
            self._write(trial.model_copy(update=update))
            self._ended += status != "started"
            words = {"started": "stopped, committed", "pruned": f"pruned after epoch {trial.epoch}"}
            self.tell(name, f"{words.get(status, status)}  [{self.progress()}]")
            if status == "failed":
                self.tell(name, error)
                if trial.kind != "sampled":
                    raise MtlError(
                        f"The baseline '{name}' failed, and nothing can be compared without it.",
                        got=error,
                        expected="a run that finishes",
                        do=f"mend the cause and rerun the command; the run is {self.store.uri}/{TRIALS}/{name}",
                    )

    def tell(self, name: str, text: str) -> None:
        """Say something about a trial."""
        self._say(f"{name:<{self._width}}  {text}")

    def primary(self, trial: Trial) -> dict[str, str]:
        """The primary metric of each task of a trial, for people."""
        kinds = self.objective.kinds
        return {task: shown(primary(kinds[task]), metrics[primary(kinds[task])]) for task, metrics in trial.val.items()}

    def _judged(self, metrics: Metrics | None) -> dict[str, dict[str, float]]:
        """Those of tasks that trials are judged by: the others, of weight 0, are evaluated as well."""
        theirs = {task: of_task for task, of_task in (metrics or {}).items() if task in self.objective.kinds}
        return {task: {name: float(value) for name, value in of_task.items()} for task, of_task in theirs.items()}

    def progress(self) -> str:
        """How far the sweep is, the best so far, and the time left."""
        trials = self.trials
        count = {status: sum(trial.status == status for trial in trials) for status in ("pruned", "failed")}
        over = sum(self._is_over(trial) for trial in trials)
        parts = [f"{over} of {self.total} trials done"]
        parts += [f"{n} {status}" for status, n in count.items() if n]
        parts += [f"{len(self._under_way)} running"] if self._under_way else []
        if (best := self.best) is not None:
            parts.append(f"best {best.id} {self.objective.show(self.value(best))}")
        if self._ended and over < self.total:
            left_s = (time.monotonic() - self._entered) / self._ended * (self.total - over)
            parts.append(f"about {clock(left_s)} left")
        return ", ".join(parts)

    def _start(self, trial: Trial) -> Trial:
        trial = trial.model_copy(update={"status": "started", "error": None})
        self._write(trial)
        self._under_way[trial.id], self._began[trial.id] = trial, time.monotonic()
        values = "  ".join(f"{name} {value:g}" for name, value in trial.values.items())
        self.tell(trial.id, f"started  {values or f'task {trial.task} alone'}")
        return trial

    def _sample(self) -> Trial:
        trials = self.trials
        number = sum(trial.kind == "sampled" for trial in trials)
        starts = self.terms.starts
        point = starts[number] if number < len(starts) else self._proposals.propose(number, trials)
        return Trial(id=f"t{number + 1:03d}", kind="sampled", point=tuple(point), values=self.terms.space.values(point))

    def _must_wait(self) -> bool:
        return self.objective.metric == DELTA_M and self.singles is None

    def _is_over(self, trial: Trial) -> bool:
        if trial.status == "failed":
            retried = (trial.kind != "sampled" or self.sweep.retry_failed) and trial.id not in self._began
            return not retried
        return trial.status != "started"

    def _write(self, trial: Trial) -> None:
        def put(record: Record) -> Record:
            known = any(other.id == trial.id for other in record.trials)
            trials = [trial if other.id == trial.id else other for other in record.trials]
            return record.model_copy(update={"trials": tuple(trials if known else [*trials, trial])})

        self._file.change(put, self.terms.record)
