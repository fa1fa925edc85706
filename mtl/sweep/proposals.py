"""Which point to try next: drawn, or learnt from the trials before. Both can take up a sweep in its middle."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, final

import numpy as np

from mtl.data.keyed import key, uniforms
from mtl.errors import ConfigError
from mtl.sweep.record import Trial
from mtl.sweep.settings import Sweep
from mtl.sweep.space import Space

if TYPE_CHECKING:
    import optuna


class Proposals(Protocol):
    """A way to choose points."""

    def propose(self, number: int, trials: Iterable[Trial]) -> list[float]:
        """The point of sampled trial `number`, from 0, in the unit cube.

        Args:
            trials: those before it, as far as they have come.
        """
        ...


@final
class Random:
    """Uniform points: of the ranges, and of the simplex. Number `n` is the same whatever came before."""

    def __init__(self, space: Space, seed: int) -> None:
        self._axes, self._seed = len(space.axes), seed

    def propose(self, number: int, trials: Iterable[Trial]) -> list[float]:
        """A point that depends on nothing but the seed and `number`."""
        return uniforms(key("sweep", self._seed), np.array([number]), self._axes)[0].tolist()


@final
class Tpe:
    """Optuna's tree-structured Parzen estimator (Bergstra et al. 2011).

    It is built anew for each proposal from the record alone, so a restored sweep goes on as if it had never stopped. Of
    a pruned trial it knows the last value before it was pruned; points under way count as bad, which keeps trials that
    run side by side apart.

    Args:
        drawn: how many trials are drawn before anything can be learnt.
        score: of a trial, larger is better; None if it has none.
    """

    def __init__(self, space: Space, seed: int, drawn: int, score: Callable[[Trial], float | None]) -> None:
        self._axes, self._seed, self._drawn, self._score = space.axes, seed, drawn, score
        self._random = Random(space, seed)
        self._optuna = _optuna()

    def propose(self, number: int, trials: Iterable[Trial]) -> list[float]:
        """A point where good trials are denser than others."""
        if number < self._drawn:
            return self._random.propose(number, trials)
        optuna = self._optuna
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # constant_liar is one
            sampler = optuna.samplers.TPESampler(
                seed=key("tpe", self._seed, number) >> 32, n_startup_trials=self._drawn, constant_liar=True
            )
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for trial in trials:
            if trial.point and trial.status != "failed":
                study.add_trial(self._known(trial))
        asked = study.ask(self._cube())
        return [asked.params[axis] for axis in self._axes]

    def _known(self, trial: Trial) -> "optuna.trial.FrozenTrial":
        create, states = self._optuna.trial.create_trial, self._optuna.trial.TrialState
        params, score = dict(zip(self._axes, trial.point, strict=True)), self._score(trial)
        if trial.status == "started" or score is None:
            return create(state=states.RUNNING, params=params, distributions=self._cube())
        score = max(score, -1e300)  # minus infinity is no number to Optuna
        if trial.status == "finished":
            return create(state=states.COMPLETE, value=score, params=params, distributions=self._cube())
        last = {trial.epoch: score}
        return create(state=states.PRUNED, intermediate_values=last, params=params, distributions=self._cube())

    def _cube(self) -> "dict[str, optuna.distributions.BaseDistribution]":
        return {axis: self._optuna.distributions.FloatDistribution(0, 1) for axis in self._axes}


def proposals(sweep: Sweep, space: Space, score: Callable[[Trial], float | None]) -> Proposals:
    """The way of choosing points that `sweep` asks for.

    Raises:
        ConfigError: it needs a package that is not installed.
    """
    if sweep.search == "random":
        return Random(space, sweep.seed)
    return Tpe(space, sweep.seed, drawn(sweep.trials, space.axes), score)


def drawn(trials: int, axes: Sequence[str]) -> int:
    """How many of so many trials to draw before learning: two for each axis and two more, but not most of them."""
    return min(2 * len(axes) + 2, max(trials // 3, 2))


def _optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise ConfigError(
            "The search 'tpe' needs Optuna, which is not installed.",
            got=str(error),
            expected="the packages of the extra 'tune'",
            do="pip install 'mtl[tune]', or use --sweep.search random",
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
