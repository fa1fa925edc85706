"""Evaluating a run's last commit on any split."""

from collections.abc import Callable
from dataclasses import dataclass

from mtl.checkpoint import load_newest, restore_model
from mtl.local import solitary
from mtl.parts import build_model, build_specs, evaluate_split
from mtl.preflight import SavedRun
from mtl.record import Commit


@dataclass(frozen=True)
class Evaluation:
    """Metrics per task, which commit they are of, and how many of the split's rows had no image to decode."""

    commit: Commit
    rows: int
    quarantined: int
    metrics: dict[str, dict[str, float]]


def evaluate_run(run: SavedRun, split: str, warn: Callable[[str], None]) -> Evaluation:
    """Metrics of the newest sound commit of `run` on `split`.

    Args:
        warn: receives a message for each damaged checkpoint.

    Raises:
        CheckpointError: no commit is sound, or the data set does not fit it.
    """
    config, manifest = run.config, run.manifest
    found = load_newest(run.store, run.record.checkpoints, warn)
    assert found is not None, "a saved run has commits"
    commit, saved = found
    specs = build_specs(config, manifest)
    model = build_model(config, specs)
    restore_model(model, saved.files["model"])
    with solitary(config.resources.gpu) as runtime:
        scores = evaluate_split(config, specs, run.data, manifest, split, model.to(runtime.device), runtime)
    return Evaluation(commit, manifest.split(split).rows, scores.quarantined, scores.metrics)
