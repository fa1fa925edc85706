"""One result, whatever the number of workers: training, its metrics and evaluation, in real processes."""

import io
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torchmetrics.functional.classification import binary_accuracy, binary_f1_score, multiclass_accuracy
from torchmetrics.functional.classification import multiclass_f1_score as macro_f1
from torchmetrics.functional.regression import mean_absolute_error, mean_squared_error, r2_score

from mtl.config import Config, Loader, Order
from mtl.data.manifest import Manifest
from mtl.parts import build_model, build_specs
from mtl.store import open_store
from tests.helpers.damage import spoil
from tests.helpers.datasets import tiny
from tests.helpers.engine import (
    BATCH_NORM,
    EXACT,
    SMALL,
    assert_same_run,
    result_of,
    saved,
    tiny_config,
    train,
)
from tests.helpers.ranks import Group, values

SPOILED = {"train/3", "train/50", "train/111", "val/7", "val/20", "test/0"}
ROWS = {"train": 200, "val": 49, "test": 30}

Run = Callable[..., Config]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("invariants")


@pytest.fixture(scope="module")
def data(folder: Path) -> Path:
    """Three labels in ten are missing, and some images do not decode."""
    tiny(folder / "data", rows=ROWS, missing=0.3)
    spoil(folder / "data", SPOILED)
    return folder / "data"


@pytest.fixture(scope="module")
def sparse(folder: Path) -> Path:
    """Nine labels in ten are missing: most local batches of eight rows have none of some task."""
    tiny(folder / "sparse", rows=ROWS, missing=0.9)
    return folder / "sparse"


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    """Train on W workers; the ranks must agree on everything. Equal runs are trained once."""
    done: dict[str, Config] = {}
    count = itertools.count()

    def trained(data: Path, world_size: int, **changes: Any) -> Config:
        config = tiny_config(data, folder / "runs", loader=Loader(error_budget=0.1), **changes)
        key = f"{world_size} {config.to_yaml()}"
        if key not in done:
            name = f"run-{next(count)}"
            config = config.model_copy(update={"name": name})
            results = values(Group(folder / name, world_size, train, config).wait())
            for result in results:
                del result["seconds"]
                assert result == results[0]
            assert results[0]["status"] == "finished"
            done[key] = config
        return done[key]

    return trained


KEPT = {"order": Order(lanes=8, block_row_groups=2, keep_tail=True)}


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_rank_invariance(run: Run, data: Path, world_size: int) -> None:
    # Three workers hold 3, 3 and 2 of the 8 lanes; the last global batch of an epoch has 8 rows.
    assert_same_run(run(data, world_size, **KEPT), run(data, 1, **KEPT))


@pytest.mark.parametrize("world_size", [3, 4])
def test_rank_invariance_where_ranks_have_no_label_of_a_task(run: Run, sparse: Path, world_size: int) -> None:
    assert_same_run(run(sparse, world_size, model=SMALL), run(sparse, 1, model=SMALL))


@pytest.mark.parametrize("world_size", [2, 4])
def test_rank_invariance_of_batch_norm_in_groups(run: Run, data: Path, world_size: int) -> None:
    changes = {"model": BATCH_NORM, "global_batch": 64}
    assert_same_run(run(data, world_size, **changes), run(data, 1, **changes))


@pytest.mark.parametrize(("world_size", "max_micro_batch"), [(3, None), (2, 7)])
def test_rank_invariance_of_mixed_samples_and_of_the_average(
    run: Run, data: Path, world_size: int, max_micro_batch: int | None
) -> None:
    plain = tiny_config(data, data)
    augment = plain.augment.model_copy(update={"mixup": 0.4, "cutmix": 1.0, "erase": 0.5})
    optimizer = plain.optimizer.model_copy(update={"ema_epochs": 0.5})
    changes: dict[str, Any] = {"augment": augment, "optimizer": optimizer, "model": SMALL, **KEPT}
    found = run(data, world_size, max_micro_batch=max_micro_batch, **changes)
    assert_same_run(found, run(data, 1, **changes))
    assert "val-ema" in result_of(found)["metrics"]


@pytest.mark.parametrize(("world_size", "max_micro_batch"), [(1, 5), (2, 7)])
def test_accumulation_changes_nothing(run: Run, data: Path, world_size: int, max_micro_batch: int) -> None:
    assert_same_run(run(data, world_size, max_micro_batch=max_micro_batch, **KEPT), run(data, 1, **KEPT))


@pytest.mark.parametrize(("world_size", "max_micro_batch"), [(1, 48), (2, 16)])
def test_accumulation_leaves_batch_norm_in_groups_alone(
    run: Run, data: Path, world_size: int, max_micro_batch: int
) -> None:
    changes = {"model": BATCH_NORM, "global_batch": 64}
    assert_same_run(run(data, world_size, max_micro_batch=max_micro_batch, **changes), run(data, 1, **changes))


def test_quarantine_is_counted_in_every_epoch(run: Run, data: Path) -> None:
    config = run(data, 1, **KEPT)
    assert result_of(config)["quarantined"] == 2 * sum(name.startswith("train/") for name in SPOILED)


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_exact_evaluation(run: Run, data: Path, split: str, world_size: int) -> None:
    config = run(data, world_size, **KEPT)
    outputs, labels = reference(config, data, split)
    got = result_of(config)["metrics"][split]

    def valid(task: str) -> tuple[torch.Tensor, torch.Tensor]:
        here = ~labels[task].isnan()
        assert got[task]["labels"] == int(here.sum())
        return outputs[task][here], labels[task][here]

    output, label = valid("object")
    scores: dict[str, Any] = {"target": label.long(), "num_classes": 3}
    assert got["object"]["accuracy"] == pytest.approx(float(multiclass_accuracy(output, average="micro", **scores)))
    assert got["object"]["recall"] == pytest.approx(float(multiclass_accuracy(output, average="macro", **scores)))
    assert got["object"]["f1"] == pytest.approx(float(macro_f1(output, average="macro", **scores)))
    loss = torch.nn.functional.cross_entropy(output, label.long(), label_smoothing=0.1)
    assert got["object"]["loss"] == pytest.approx(float(loss), **EXACT)

    output, label = valid("kind")
    assert got["kind"]["accuracy"] == pytest.approx(float(binary_accuracy(output[:, 0], label.long())))
    assert got["kind"]["f1"] == pytest.approx(float(binary_f1_score(output[:, 0], label.long())))

    output, label = valid("angle")
    apart = np.angle(np.exp(1j * (np.arctan2(*output.numpy().T) - label.numpy())))
    assert got["angle"]["error_degrees"] == pytest.approx(np.degrees(np.abs(apart).mean()), **EXACT)

    output, label = valid("amount")
    counts = Manifest.load(open_store(str(data))).split("train").labels["amount"]
    assert counts.low is not None
    assert counts.high is not None
    predicted = output[:, 0] * (counts.high - counts.low) / 2 + (counts.high + counts.low) / 2
    assert got["amount"]["mae"] == pytest.approx(float(mean_absolute_error(predicted, label)), **EXACT)
    assert got["amount"]["rmse"] == pytest.approx(float(mean_squared_error(predicted, label, squared=False)), **EXACT)
    assert got["amount"]["r2"] == pytest.approx(float(r2_score(predicted, label)), **EXACT)


def reference(config: Config, data: Path, split: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Outputs of the final model for every row that decodes, read and decoded without mtl; labels, NaN if missing."""
    manifest = Manifest.load(open_store(str(data)))
    model = build_model(config, build_specs(config, manifest), torch.float64).eval()
    model.load_state_dict(saved(config))
    examples = [row for file in sorted((data / "shards").glob(f"{split}-*")) for row in pq.read_table(file).to_pylist()]
    assert len(examples) == ROWS[split]
    examples = [row for row in examples if row["image_id"] not in SPOILED]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(row["image"]))) for row in examples]) / 255
    pixels = (pixels - manifest.statistics.mean) / manifest.statistics.std
    with torch.no_grad():
        outputs = model(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    names = list(outputs)
    labels = {n: [np.nan if row[n] is None else row[n] for row in examples] for n in names}
    return outputs, {name: torch.tensor(values, dtype=torch.float64) for name, values in labels.items()}
