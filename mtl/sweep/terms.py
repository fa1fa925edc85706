"""The terms of a sweep: what every trial has in common, what is searched and for what. They never change in a sweep."""

import re
from collections.abc import Mapping
from typing import Any, final

from mtl.config import Config, parse
from mtl.config_order import Rebalance
from mtl.errors import CheckpointError, ConfigError
from mtl.record import RUN
from mtl.schema import differences, refuse_unread
from mtl.store import Store
from mtl.sweep.objective import objective
from mtl.sweep.record import SWEEP, TRIALS, Record, Trial
from mtl.sweep.settings import Sweep
from mtl.sweep.space import applied, number_at, search_space
from mtl.sweep.starts import starting_points


@final
class Terms:
    """What makes trials comparable.

    Args:
        config: what every trial has in common; its name is the sweep's.
        sweep: how to search.

    Raises:
        ConfigError: the space or the metric can not be used.
    """

    def __init__(self, config: Config, sweep: Sweep) -> None:
        self.config, self._sweep = config, sweep
        if config.runtime != "ray":
            refuse_unread(sweep, ("concurrent",), f"runtime = {config.runtime}, one trial after the other")
        self.space = search_space(config, sweep.space)
        self.objective = objective(sweep.metric, config)
        self.grace = sweep.grace or max(1, config.epochs // 4)
        if self.grace > config.epochs:
            raise ConfigError(
                "Trials would end before any could be pruned.",
                got=f"sweep.grace {self.grace}",
                expected=f"at most epochs = {config.epochs}; equal to it, nothing is pruned",
                do="lower --sweep.grace",
            )
        self.baselines = self._baselines()
        self.starts = starting_points(config, self.space, sweep.starts)
        kept = sweep.model_dump(include={"search", "metric", "seed", "reduction"})
        if self.starts:
            kept["starts"] = [list(point) for point in self.starts]
        self.record = Record(
            name=config.name,
            config=config.to_yaml(),
            settings={**kept, "grace": self.grace, "space": self.space.declared()},
        )

    def describe(self) -> list[str]:
        """What is searched, for people."""
        space, sweep = self.space, self._sweep
        ranges = [f"{name} {r.low:g} to {r.high:g} ({r.scale})" for name, r in space.ranges.items()]
        if space.shares:
            names = ", ".join(name.split(".")[1] for name in space.shares)
            ranges.append(f"weights of {names} (any shares of {len(space.shares)})")
        on_ray = self.config.runtime == "ray"
        pruned = f"pruned from epoch {self.grace} on" if on_ray else "nothing is pruned without Ray"
        return [
            f"space    {'; '.join(ranges)}: {len(space.axes)} degrees of freedom",
            f"search   {sweep.search} for the best {self.objective.metric} on validation; {sweep.trials} trials "
            f"of {self.config.epochs} epochs and {len(self.baselines)} baselines; {pruned}",
        ]

    def config_of(self, trial: Trial) -> Config:
        """What a trial trains: an ordinary run below the sweep."""
        config = self.config
        if trial.task is not None:
            config = config.model_copy(update=_alone(config, trial.task))
        else:
            config = applied(config, trial.values)
        at = f"{config.storage.rstrip('/')}/{config.name}/{TRIALS}"
        return Config.model_validate({**config.model_dump(), "storage": at, "name": trial.id})

    def check_restored(self, store: Store, record: Record | None) -> None:
        """Compare with the terms on which the sweep in `store` was begun.

        Raises:
            ConfigError: what is there is a run and no sweep.
            CheckpointError: the terms differ; the difference is shown.
        """
        if record is None:
            if store.list(RUN) and store.list("config.yaml"):
                raise ConfigError(
                    f"'{self.config.name}' is the name of a run, not of a sweep.",
                    got=store.uri,
                    expected="a folder of the sweep's own",
                    do="choose another --name",
                )
            return
        changed = _changed_settings(record.settings, self.record.settings) + _changed_fields(record.config, self.config)
        if changed:
            width = max(len(name) for name, _, _ in changed)
            rows = [f"{name:<{width}}  {old} -> {new}" for name, old, new in changed]
            raise CheckpointError(
                f"The sweep '{self.config.name}' was begun with another search space or configuration.",
                got=("\n" + " " * 12).join(rows),
                expected="the same: trials on different terms can not be compared",
                do=f"choose another --name, or repeat the first terms ({store.uri}/{SWEEP})",
            )

    def _baselines(self) -> tuple[Trial, ...]:
        tasks = list(self.objective.kinds)
        slugs = [re.sub(r"[^a-z0-9._-]+", "-", task.lower())[:56] for task in tasks]
        ids = slugs if len(set(slugs)) == len(slugs) else [str(number) for number in range(len(tasks))]
        singles = [Trial(id=f"single-{id_}", kind="single", task=task) for id_, task in zip(ids, tasks, strict=True)]
        if len(tasks) == 1:
            return tuple(singles)
        weights = {f"tasks.{task}.weight": 1.0 for task in tasks}
        point = self.space.point({name: float(number_at(self.config, name)) for name in self.space.ranges} | weights)
        return (*singles, Trial(id="uniform", kind="uniform", point=tuple(point or ()), values=weights))


def _alone(config: Config, name: str) -> dict[str, object]:
    """What to change for one task to be trained by itself. What names the others goes with them."""
    task, learning, evaluation = config.tasks[name], config.optimizer, config.evaluation
    its_best = evaluation.best is not None and evaluation.best.startswith(f"{name}/")
    return {
        "tasks": {name: task.model_copy(update={"weight": 1.0, "group_of": None})},
        "optimizer": learning.model_copy(
            update={"head_lr": {its: lr for its, lr in learning.head_lr.items() if its == name}}
        ),
        "rebalance": config.rebalance if config.rebalance.task == name else Rebalance(),
        "evaluation": evaluation if its_best else evaluation.model_copy(update={"best": None, "patience": None}),
    }


def _changed_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, object, object]]:
    before, after = ({**s, **{f"space.{name}": how for name, how in s["space"].items()}} for s in (old, new))
    names = [name for name in {**before, **after} if name != "space" and before.get(name) != after.get(name)]
    return [(name, before.get(name, "not searched"), after.get(name, "not searched")) for name in names]


def _changed_fields(saved: str, config: Config) -> list[tuple[str, object, object]]:
    """Fields that make trials incomparable: unlike in a run, epochs and the size of evaluated images are among them."""
    changed = differences(parse(saved), config)
    fixed = ("epochs", "augment.eval_size_px", "augment.eval_resize_px")
    return [(name, old, new) for name, (role, old, new) in changed.items() if role == "identity" or name in fixed]
