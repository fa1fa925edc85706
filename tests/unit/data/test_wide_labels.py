"""Labels that are lists: written, counted, read, given to tasks, and trained and measured on."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from mtl.config import Augment, Config, Loss, Model, Order, Task
from mtl.data.columns import array
from mtl.data.derivation import tree_paths
from mtl.data.example import Example
from mtl.data.loader import Target
from mtl.data.manifest import Index, Label, Manifest
from mtl.data.plan import check
from mtl.data.reader import Reader
from mtl.errors import ConfigError, DataError
from mtl.local import solitary
from mtl.parts import build_model, build_specs, evaluate_split
from mtl.preflight import check as preflight
from mtl.rehearsal import rehearse
from mtl.store import open_store
from tests.helpers.datasets import tiny
from tests.helpers.memory_store import MemoryStore
from tests.helpers.wide import ANIMALS, GROUPS, LABELS, jpeg, values, wide

TASKS = {
    "seen": Task(kind="multilabel", label="seen", metrics=("map", "auroc", "ece", "each"), loss=Loss(balanced=True)),
    "at": Task(kind="regression", label="at", flip="negate", flip_components=(0,), metrics=("each",)),
    "votes": Task(kind="soft", label="votes"),
    "fine": Task(
        kind="multiclass", label="fine", tree="coarse", loss=Loss(name="hierarchical"), metrics=("top5", "auroc")
    ),
    "coarse": Task(kind="multiclass", label="coarse", group_of="fine", loss=Loss(balanced=True)),
    "rank": Task(kind="ordinal", label="fine"),
    "face": Task(kind="multilabel", label="smiles, young"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wide") / "data"
    wide(path)
    return path


def config(data: Path, **changes: Any) -> Config:
    settings: dict[str, Any] = {
        "tasks": TASKS,
        "augment": Augment(size_px=16, crop="none", eval_resize_px=16),
        "model": Model(backbone="tests.helpers.backbones:small", batch_norm="local"),
        "order": Order(lanes=8),
        "global_batch": 16,
    }
    return Config(recipe="t", name="t", data=str(data), storage=str(data / "runs"), **{**settings, **changes})


def test_what_is_written_is_read() -> None:
    store = MemoryStore()
    manifest = wide(store)
    reader = Reader(store, Index.load(store, "val"), tuple(LABELS), manifest.widths)
    shown = [{name: v[row] for name, v in reader.read(0).labels.items()} for row in range(len(reader.read(0).ids))]
    numbers = {bytes(reader.read(0).image(row)): row for row in range(len(shown))}
    found = 0
    for number in range(24):
        example, row = values(number), numbers.get(jpeg(number))
        if row is None:
            continue
        found += 1
        seen, at, votes = example["seen"], example["at"], example["votes"]
        if seen is None:
            assert shown[row]["seen"].tolist() == [-1] * 3
        else:
            assert isinstance(seen, tuple)
            assert shown[row]["seen"].tolist() == [1 if i in seen else -1 if -1 - i in seen else 0 for i in range(3)]
        np.testing.assert_array_equal(shown[row]["at"], np.array(at or (math.nan,) * 2, np.float32))
        np.testing.assert_allclose(shown[row]["votes"], np.array(votes or (math.nan,) * 3), rtol=1e-6)
    assert found == len(shown)


def test_counts(data: Path) -> None:
    manifest = Manifest.load(open_store(str(data)))
    assert manifest.format_version == 2
    counts = manifest.split("train").labels
    rows = [values(number) for number in range(64)]
    seen = [row["seen"] for row in rows if isinstance(row["seen"], tuple)]
    assert counts["seen"].histogram == tuple(sum(i in ids for ids in seen) for i in range(3))
    assert counts["seen"].known == tuple(sum(-1 - i not in ids for ids in seen) for i in range(3))
    at = [row["at"] for row in rows if isinstance(row["at"], tuple)]
    assert counts["at"].lows == (min(x for x, _ in at), min(y for _, y in at if not math.isnan(y)))
    assert counts["at"].known == (len(at), sum(not math.isnan(y) for _, y in at))
    assert counts["votes"].valid + counts["votes"].nulls == 64
    assert manifest.groups == {"fine": {"coarse": GROUPS}}


def test_older_kinds_alone_are_still_version_1(tmp_path: Path) -> None:
    tiny(tmp_path)
    content = json.loads((tmp_path / "manifest.json").read_text())
    assert content["format_version"] == 1
    assert "groups" not in content
    assert content["splits"]["train"]["labels"]["object"].keys() == {"valid", "nulls", "low", "high", "histogram"}


def test_everything_fits_together(data: Path) -> None:
    made = config(data)
    preflight(made)
    manifest = Manifest.load(open_store(str(data)))
    found = rehearse(made, manifest)
    assert found.losses.keys() == TASKS.keys()
    assert all(math.isfinite(loss) for loss in found.losses.values())
    specs = build_specs(made, manifest)
    with solitary() as runtime:
        model = build_model(made, specs)
        metrics = evaluate_split(made, specs, open_store(str(data)), manifest, "val", model, runtime).metrics
    for name, task in TASKS.items():
        assert {"loss", *task.further()} <= metrics[name].keys()
        assert all(math.isfinite(value) for value in metrics[name].values())
    assert {"map[owl]", "f1[cat]", "accuracy[dog]"} <= metrics["seen"].keys()
    assert {"mae[x]", "r2[y]"} <= metrics["at"].keys()


def test_a_step_without_data(data: Path) -> None:
    blank = {name: task.model_copy(update={"classes": 4}) for name, task in TASKS.items() if name not in ("at", "face")}
    assert rehearse(config(data, tasks={**blank, "face": TASKS["face"]}), None).losses.keys() == {*blank, "face"}


@pytest.mark.parametrize(
    ("task", "kind", "said"),
    [
        (Task(kind="multilabel", label="seen,young"), ConfigError, "kind set"),
        (Task(kind="multilabel", label="smiles"), ConfigError, "kind binary"),
        (Task(kind="regression", label="at", flip="negate"), ConfigError, "flip_components, of 0 to 1"),
        (Task(kind="regression", label="at", flip="negate", flip_components=(2,)), ConfigError, "of 0 to 1"),
        (Task(kind="multiclass", label="fine", tree="smiles"), DataError, "groups of 'fine': coarse"),
        (Task(kind="multiclass", label="fine", tree="nowhere.csv"), DataError, "can not be read"),
        (Task(kind="soft", label="votes", classes=4), ConfigError, "3 in the data set"),
    ],
)
def test_tasks_that_do_not_fit(data: Path, task: Task, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind) as caught:
        preflight(config(data, tasks={"mine": task}))
    assert said in str(caught.value)


def test_trees_from_labels_and_from_files(data: Path, tmp_path: Path) -> None:
    manifest = Manifest.load(open_store(str(data)))
    assert tree_paths("coarse", "fine", manifest) == [("left",), ("left",), ("right",), ("right",)]
    (tmp_path / "tree.csv").write_text("old,new\na,x > y\nb,x\n")
    assert tree_paths(str(tmp_path / "tree.csv"), "fine", manifest) == [("x", "y"), ("x",), (), ()]
    (tmp_path / "tree.csv").write_text("old,new\nfox,x\n")
    with pytest.raises(DataError, match="names no class"):
        tree_paths(str(tmp_path / "tree.csv"), "fine", manifest)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("seen", value) for value in ((3,), (0, -1), (-4,))),
        *(("at", value) for value in ((1.0,), (math.inf, 0.0), (math.nan, math.nan), 1.0)),
        *(("votes", value) for value in ((0.5, 0.5, 0.5), (1.5, -0.5, 0.0))),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: Any) -> None:
    labels = {name: LABELS[name]}
    with pytest.raises(DataError, match="out of range"):
        check([Example("1", "train", {name: value}, lambda: b"")], labels)


def test_columns_of_another_kind_are_refused() -> None:
    lists, plain = pa.chunked_array([pa.array([[0.5], None])]), pa.chunked_array([pa.array([1, None])])
    for column, width in ((lists, None), (plain, 2), (lists, 2), (pa.chunked_array([pa.array([[5]])]), 3)):
        with pytest.raises(DataError, match="label column"):
            array(column, width)
    assert array(plain, None).tolist() == [1, -1]


def test_a_mirror_negates_some_components() -> None:
    labels = np.array([[1, 2], [3, np.nan]], np.float32)
    flip = np.array([True, False])
    some = Target("t", "at", False, "number", 2, (1,)).mirror(labels, flip)
    every = Target("t", "at", False, "number", 2).mirror(labels, flip)
    np.testing.assert_array_equal(some, np.array([[1, -2], [3, np.nan]]))
    np.testing.assert_array_equal(every, np.array([[-1, -2], [3, np.nan]]))


def test_several_columns_are_one_label(data: Path) -> None:
    specs = {spec.name: spec for spec in build_specs(config(data), Manifest.load(open_store(str(data))))}
    assert specs["face"].columns == ("smiles", "young")
    assert specs["face"].width == 2
    weights = specs["face"].weight_of(torch.tensor([[1, -1], [0, 1], [-1, -1]]))
    assert weights.tolist() == [0.5, 1, 0]
    assert Label(kind="set", classes=ANIMALS) == LABELS["seen"]
