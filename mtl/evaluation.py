"""Evaluating a run's last commit on any split."""

from dataclasses import dataclass

from mtl.checkpoint import load_newest, restore_model
from mtl.config import Config, parse
from mtl.data.manifest import Manifest
from mtl.errors import NotFound, RunError
from mtl.local import solitary
from mtl.parts import build_model, build_specs, evaluate_split
from mtl.record import Commit, read
from mtl.store import open_store


@dataclass(frozen=True)
class Evaluation:
    """Metrics per task, and which commit they are of."""

    config: Config
    commit: Commit
    rows: int
    metrics: dict[str, dict[str, float]]


def evaluate_run(uri: str, split: str, data: str | None = None, warn: list[str] | None = None) -> Evaluation:
    """Metrics of the newest sound commit of the run at `uri`.

    Args:
        data: another address of the data set than the run's own.
        warn: receives a message for each damaged checkpoint.

    Raises:
        RunError: there is no run, or it has not committed yet.
        DataError: the data set or the split is missing.
    """
    store = open_store(uri)
    record = read(store)
    try:
        config = parse(store.get("config.yaml").decode())
    except NotFound as error:
        raise RunError(f"There is no run at {uri}.", do="name the folder that holds run.json") from error
    found = load_newest(store, record.checkpoints if record else (), (warn or []).append)
    if found is None:
        raise RunError(f"The run at {uri} has no commit yet.", do="train it further: jobs/train.py")
    commit, saved = found
    source = open_store(data or config.data)
    manifest = Manifest.load(source)
    specs = build_specs(config, manifest)
    model = build_model(config, specs)
    restore_model(model, saved.files["model"])
    with solitary(config.resources.gpu) as runtime:
        metrics = evaluate_split(config, specs, source, manifest, split, model.to(runtime.device), runtime)
    return Evaluation(config, commit, manifest.split(split).rows, metrics)
