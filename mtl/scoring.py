"""The evaluations of a run: of the weights and of their average, after epochs and at the end; which was the best."""

from collections.abc import Callable
from typing import Any, final

import torch

from mtl.checkpoint import load, restore_model
from mtl.config import Config
from mtl.config_evaluation import better
from mtl.data.manifest import Index, Manifest
from mtl.errors import MtlError
from mtl.parts import average_buffers, evaluate_split
from mtl.record import read
from mtl.runtime import Runtime
from mtl.selection import Selection
from mtl.store import Store
from mtl.tasks import TaskSpec
from mtl.trainee import Trainee

Metrics = dict[str, dict[str, float]]


@final
class Scorer:
    """Evaluates on every rank, and tells of it on rank 0.

    Args:
        data, manifest: the first data set, which has the splits.
        dtype: of parameters.
        record: receives one row for each evaluation.

    Attributes:
        done: metrics per task of the last evaluation of each kind: val, test; with an average of the weights also
            val-ema, test-ema; with a metric to select by also test-best.
        best: whether the last one of val was better than all before.
    """

    def __init__(
        self,
        config: Config,
        specs: list[TaskSpec],
        data: Store,
        manifest: Manifest,
        runtime: Runtime,
        dtype: torch.dtype,
        record: Callable[[dict[str, Any]], None],
    ) -> None:
        self._config, self._specs, self._data, self._manifest = config, specs, data, manifest
        self._runtime, self._dtype, self._record = runtime, dtype, record
        # At once, so that what is not there is missed before training, and storage that is away later is not.
        self._indexes = Index.load_each(data, ("val", "test"))
        wanted = config.evaluation
        larger = wanted.best is None or better(config.tasks)[wanted.best]
        view = f"{config.augment.evaluated_px} of {config.augment.eval_resize_px} px"
        self.selection = Selection(wanted.best, larger=larger, patience=wanted.patience, view=view)
        self.done: dict[str, Metrics] = {}
        self.best = False

    def after_epoch(self, trainee: Trainee, epoch: int) -> bool:
        """Evaluate on val where it is time for that. Returns whether training has gone on for long enough.

        Raises:
            MtlError: it has, and not one evaluation had a finite value to select by.
        """
        wanted, selection = self._config.evaluation, self.selection
        if epoch % wanted.every_epochs and epoch != self._config.epochs:
            return False
        self.best = selection.tell(self.evaluate("val", trainee, epoch))
        if selection.enough and selection.best is None:
            raise MtlError(
                f"Training diverged: {wanted.best} was not finite in any of {selection.since} evaluations.",
                do="lower optimizer.lr, or set optimizer.clip_norm",
            )
        if selection.enough:
            text = f"{selection.since} evaluations in a row without a better {wanted.best}: training ends here"
            self._runtime.emit({"kind": "note", "text": text})
        return selection.enough

    def evaluate(self, split: str, trainee: Trainee, epoch: int) -> Metrics:
        """Metrics on a split: of the average of the weights where there is one, else of the weights."""
        average_buffers(trainee.model, trainee.ema, self._runtime)
        found = {split: self._score(split, split, trainee, epoch)}
        if trainee.ema is not None:
            with trainee.ema.applied():
                found[f"{split}-ema"] = self._score(split, f"{split}-ema", trainee, epoch)
        flat = {f"{at}/{task}/{name}": v for at, m in found.items() for task, of in m.items() for name, v in of.items()}
        self._runtime.report({"epoch": epoch, **flat})
        return [*found.values()][-1]

    def test_best(self, trainee: Trainee, run: Store) -> None:
        """Metrics of the best commit on test; the model keeps its weights. Nothing where no metric selects.

        Raises:
            CheckpointError: it is damaged.
        """
        if self._config.evaluation.best is None:
            return
        self._runtime.sum(torch.zeros(1))  # every rank reads what rank 0 has committed
        record = read(run)
        if record is not None and record.best is not None:
            saved = load(run, record.best.path, record.best.manifest_sha256)
            restore_model(trainee.model, saved.files["model" if trainee.ema is None else "ema"])
            self._score("test", "test-best", trainee, record.best.epoch)

    def _score(self, split: str, name: str, trainee: Trainee, epoch: int) -> Metrics:
        scores = evaluate_split(
            self._config,
            self._specs,
            self._data,
            self._manifest,
            split,
            trainee.model,
            self._runtime,
            self._dtype,
            self._indexes[split],
        )
        self.done = {**self.done, name: scores.metrics}
        counts = {"rows": self._manifest.split(split).rows, "quarantined": scores.quarantined}
        row = {"kind": "evaluation", "split": name, "epoch": epoch, **counts, "metrics": scores.metrics}
        if self._runtime.rank == 0:
            self._record(row)
        self._runtime.emit(row)
        return scores.metrics
