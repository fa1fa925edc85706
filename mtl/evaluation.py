"""Evaluating a commit of a run on any split."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from mtl.checkpoint import load_newest, restore_model
from mtl.errors import ConfigError
from mtl.local import solitary
from mtl.parts import build_model, build_specs, evaluate_split
from mtl.precision import set_numerics
from mtl.preflight import SavedRun
from mtl.record import Commit


@dataclass(frozen=True)
class Evaluation:
    """Metrics per task, which commit they are of, and how many of the split's rows had no image to decode."""

    commit: Commit
    rows: int
    quarantined: int
    metrics: dict[str, dict[str, float]]


def evaluate_run(
    run: SavedRun,
    split: str,
    warn: Callable[[str], None],
    *,
    which: Literal["last", "best"] = "last",
    weights: Literal["raw", "ema"] = "raw",
) -> Evaluation:
    """Metrics of a commit of `run` on `split`.

    Args:
        warn: receives a message for each damaged checkpoint.
        which: the newest sound commit, or the one with the best metric.
        weights: those that were trained, or their average.

    Raises:
        ConfigError: the run has no best commit, or no average.
        CheckpointError: no commit is sound, or the data set does not fit it.
    """
    config, manifest = run.config, run.manifest
    if weights == "ema" and config.optimizer.ema_epochs is None:
        raise _lacks("average of its weights", "optimizer.ema_epochs")
    if which == "best" and run.record.best is None:
        raise _lacks("best commit", "evaluation.best")
    commits = [run.record.best] if which == "best" and run.record.best else run.record.checkpoints
    found = load_newest(run.store, commits, warn)
    assert found is not None, "a saved run has commits"
    commit, saved = found
    specs = build_specs(config, manifest)
    model = build_model(config, specs)
    restore_model(model, saved.files["ema" if weights == "ema" else "model"])
    set_numerics(config.precision, deterministic=config.deterministic)
    with solitary(config.resources.gpu) as runtime:
        scores = evaluate_split(config, specs, run.data, manifest, split, model.to(runtime.device), runtime)
    return Evaluation(commit, manifest.split(split).rows, scores.quarantined, scores.metrics)


def _lacks(what: str, option: str) -> ConfigError:
    return ConfigError(f"The run has no {what}.", do=f"evaluate without it; a run keeps one with {option} set")
