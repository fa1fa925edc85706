"""What a sweep selects for, always on the validation split. Torch-free, so that a wrong name is an error at once."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

from mtl.config import Config, TaskKind
from mtl.errors import ConfigError
from mtl.task_config import METRICS, PLAIN

Metrics = Mapping[str, Mapping[str, float]]

DELTA_M = "delta_m"


@final
@dataclass(frozen=True)
class Objective:
    """What decides between trials.

    Args:
        metric: delta_m, or TASK/METRIC.
        kinds: of the tasks that are trained, by name.
        further: the metrics that they have beside those of their kind, and whether larger is better.
    """

    metric: str
    kinds: Mapping[str, TaskKind]
    further: Mapping[str, Mapping[str, bool]] = field(default_factory=dict[str, Mapping[str, bool]])

    def __post_init__(self) -> None:
        known = [DELTA_M, *(f"{task}/{name}" for task in self.kinds for name in self._metrics(task))]
        if self.metric not in known:
            raise ConfigError(
                "No task produces the metric that the sweep is to select by.",
                got=self.metric,
                expected=f"one of {', '.join(known)}",
                do="set --sweep.metric",
            )

    @property
    def larger_is_better(self) -> bool:
        """Whether a larger value wins."""
        if self.metric == DELTA_M:
            return True
        task, _, name = self.metric.rpartition("/")
        return self._metrics(task)[name]

    def _metrics(self, task: str) -> Mapping[str, bool]:
        return {**METRICS[self.kinds[task]], **self.further.get(task, {})}

    def value(self, metrics: Metrics, single: Mapping[str, float] | None) -> float | None:
        """The value of a trial with these validation metrics; None if it can not be known yet.

        Args:
            single: primary metrics of the single-task baselines, None until all of them are there.

        Raises:
            ConfigError: a baseline is zero, so nothing can be relative to it.
        """
        if self.metric != DELTA_M:
            task, _, name = self.metric.rpartition("/")
            return metrics[task][name]
        return None if single is None else self.delta_m(metrics, single)

    def delta_m(self, metrics: Metrics, single: Mapping[str, float]) -> float:
        """Mean relative gain over the single-task baselines, a fraction.

        Raises:
            ConfigError: a baseline is zero, so nothing can be relative to it.
        """
        from mtl.metrics import delta_m  # loads torch, which the checks before a sweep do without

        zero = [task for task, value in single.items() if value == 0]
        if zero:
            raise ConfigError(
                f"The single-task baseline of '{zero[0]}' is zero, so no gain over it can be told.",
                got=f"{primary(self.kinds[zero[0]])} 0 on the validation split",
                expected="a baseline that has learnt something",
                do="train longer, or begin another sweep with --sweep.metric TASK/METRIC",
            )
        better = {task: METRICS[kind][primary(kind)] for task, kind in self.kinds.items()}
        return delta_m(primaries(metrics, self.kinds), single, better)

    def score(self, value: float) -> float:
        """`value` turned so that larger is better; not a number is worst."""
        if not math.isfinite(value):
            return -math.inf
        return value if self.larger_is_better else -value

    def number(self, value: float) -> str:
        """`value` for people."""
        return f"{100 * value:+.1f} %" if self.metric == DELTA_M else shown(self.metric.rpartition("/")[2], value)

    def show(self, value: float | None) -> str:
        """`value` and what it is, for people."""
        name = self.metric.replace("_", "-") if self.metric == DELTA_M else self.metric
        return f"{name} {'not known yet' if value is None else self.number(value)}"


def objective(metric: str, config: Config) -> Objective:
    """The objective `metric` over the tasks of `config` that have a weight.

    Raises:
        ConfigError: no task produces it; the message lists what there is.
    """
    trained = {name: task for name, task in config.tasks.items() if task.weight > 0}
    kinds: dict[str, TaskKind] = {name: task.kind for name, task in trained.items()}
    return Objective(metric, kinds, {name: task.further() for name, task in trained.items()})


def primary(kind: TaskKind) -> str:
    """The name of the metric that stands for a task of this kind."""
    return next(iter(METRICS[kind]))


def primaries(metrics: Metrics, kinds: Mapping[str, TaskKind]) -> dict[str, float]:
    """The primary metric of each task."""
    return {task: metrics[task][primary(kind)] for task, kind in kinds.items()}


def shown(name: str, value: float) -> str:
    """A metric for people."""
    if name == "error_degrees":
        return f"{value:.1f}°"
    return f"{value:.3g}" if name in (*PLAIN, "loss") else f"{100 * value:.1f} %"
