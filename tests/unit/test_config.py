"""The configuration: strict, readable in its errors, saved and loaded back, every field with a role."""

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from mtl import recipes
from mtl.config import Augment, Config, Model, Optimizer, Order, Resources, Task, load, parse
from mtl.errors import ConfigError
from mtl.schema import differences
from tests.helpers.jobs import tiny_config

BASE = tiny_config("data", "runs")
POSITIVE = st.floats(1e-12, 1e12, allow_nan=False)


def changed(**changes: Any) -> Config:
    return tiny_config("data", "runs", **changes)


def tree(**changes: Any) -> dict[str, Any]:
    """BASE as plain values, with dotted names changed: `optimizer__lr=3`."""
    values = BASE.model_dump(mode="json")
    for name, value in changes.items():
        *sections, last = name.split("__")
        inner = values
        for section in sections:
            inner = inner[section]
        inner[last] = value
    return values


def refused(values: object) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse(yaml.safe_dump(values))
    return caught.value


def sections(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from sections(kind)


@pytest.mark.parametrize("config", [BASE, *recipes.RECIPES.values()], ids=lambda c: c.recipe)
def test_saved_and_loaded_back_it_is_the_same(config: Config, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    assert load(path) == config


@given(lr=POSITIVE, weight=POSITIVE, seed=st.integers(0, 2**70), clip=st.none() | POSITIVE, name=st.text(min_size=1))
@example(lr=0.1, weight=1.0, seed=0, clip=None, name="next\x85line")
def test_any_value_survives_the_file(lr: float, weight: float, seed: int, clip: float | None, name: str) -> None:
    optimizer = Optimizer(lr=lr, clip_norm=clip)
    tasks = {"task": Task(kind="regression", label=name, weight=weight)}
    config = tiny_config(name, "runs", seed=seed, optimizer=optimizer, tasks=tasks)
    assert parse(config.to_yaml()) == config


def test_it_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        BASE.epochs = 3  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("values", "got", "expected"),
    [
        (tree(optimizer__learning_rate=1), "optimizer.learning_rate: no such key", "one of name, lr, momentum"),
        (tree(optimiser={}), "optimiser: no such key; did you mean optimizer?", "one of schema_version, recipe, name"),
        (tree(tasks__kind__weigth=1), "tasks.kind.weigth: no such key; did you mean weight?", "one of kind, label"),
        (tree(epochs=0), "epochs: 0", "greater than or equal to 1"),
        (tree(epochs="many"), "epochs: 'many'", "a valid integer"),
        (tree(optimizer__lr=float("nan")), "optimizer.lr: nan", "a finite number"),
        (tree(optimizer__lr=float("inf")), "optimizer.lr: inf", "a finite number"),
        (tree(name="Bad/Name"), "name: 'Bad/Name'", "^[a-z0-9]"),
        (tree(name="../up"), "name: '../up'", "^[a-z0-9]"),
        (tree(name="a\n"), r"name: 'a\n'", "^[a-z0-9]"),
        (tree(runtime="slurm"), "runtime: 'slurm'", "'ray' or 'local'"),
        (tree(schema_version=2), "schema_version: 2", "1"),
        ({name: value for name, value in tree().items() if name != "tasks"}, "tasks is missing", "a value for tasks"),
        (tree(tasks__kind__kind="ranking"), "tasks.kind.kind: 'ranking'", "'multiclass'"),
    ],
)
def test_invalid_values_are_named_with_what_is_valid(values: dict[str, Any], got: str, expected: str) -> None:
    error = refused(values)
    assert got in str(error.got)
    assert expected in str(error.expected)
    assert error.do


def test_all_invalid_values_are_reported_at_once() -> None:
    error = refused(tree(epochs=0, optimizer__lr=-1, bogus=1))
    assert all(part in str(error.got) for part in ("epochs: 0", "optimizer.lr: -1", "bogus: no such key"))


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"tasks": {}}, "tasks is empty"),
        ({"tasks": {"kind": Task(kind="binary", label="kind", weight=0)}}, "every task has weight 0"),
        ({"tasks": {"a/b": Task(kind="binary", label="kind")}}, "tasks.a/b: the name must be a letter"),
        ({"global_batch": 34}, "global_batch (34) must be a multiple of order.lanes (4)"),
        ({"resources": Resources(workers=8)}, "resources.workers (8) must be at most order.lanes (4)"),
        ({"resources": Resources(workers=4), "model": Model()}, "must divide model.batch_norm_groups (2)"),
        ({"model": Model(batch_norm_groups=6)}, "model.batch_norm_groups (6) must divide order.lanes (4)"),
        ({"global_batch": 16, "model": Model()}, "fewer than 16 samples"),
        ({"max_micro_batch": 8, "model": Model()}, "max_micro_batch (8) must hold a batch-norm group (16 samples)"),
        ({"model": Model(batch_norm="sync")}, "needs GPUs"),
        ({"resources": Resources(workers=2, min_workers=3)}, "resources.min_workers (3) must be at most"),
        ({"runtime": "local", "resources": Resources(min_workers=1)}, "resources.min_workers (1) needs runtime=ray"),
        (
            {"global_batch": 64, "resources": Resources(workers=4, min_workers=1), "model": Model(batch_norm_groups=4)},
            "resources.min_workers (1): 3 workers do not divide model.batch_norm_groups",
        ),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], fragment: str) -> None:
    with pytest.raises(ConfigError, match="contradicts itself") as caught:
        changed(**changes)
    assert fragment in str(caught.value.got)


@pytest.mark.parametrize(
    ("refusing", "augment"),
    [
        ("flip", Augment(flip=0.5, crop="none")),
        ("crop", Augment(flip=0, crop="resized")),
        ("colour", Augment(flip=0, crop="none", brightness=0, contrast=0.1)),
    ],
)
def test_augmentation_that_falsifies_a_label_is_refused(refusing: str, augment: Augment) -> None:
    def config(augment: Augment) -> Config:
        task = Task.model_validate({"kind": "binary", "label": "kind", refusing: "refuse"})
        return changed(tasks={"kind": task}, augment=augment)

    with pytest.raises(ConfigError, match="would falsify task 'kind'"):
        config(augment)
    config(Augment(flip=0, crop="none", brightness=0))


@pytest.mark.parametrize(
    ("make", "fragment"),
    [
        (lambda: Task(kind="binary", label="x", flip="negate"), "flip=negate"),
        (lambda: Task(kind="binary", label="x", label_smoothing=0.1), "label_smoothing"),
        (lambda: Task(kind="regression", label="x", classes=3), "classes"),
        (lambda: Augment(crop_scale=(0.5, 0.2)), "crop_scale"),
        (lambda: Augment(crop_scale=(0.0, 1.0)), "crop_scale"),
        (lambda: Augment(crop_ratio=(2.0, 1.0)), "crop_ratio"),
        (lambda: Augment(crop="padded", crop_scale=(0.5, 1.0)), "augment.crop_scale would have no effect"),
        (lambda: Augment(crop="none", crop_ratio=(1.0, 1.0)), "augment.crop_ratio would have no effect"),
        (lambda: Augment(crop="resized", crop_pad_px=2), "augment.crop_pad_px would have no effect"),
        (lambda: Model(batch_norm="frozen", batch_norm_groups=4), "model.batch_norm_groups would have no effect"),
        (lambda: Resources(resize_s=60), "resources.resize_s would have no effect"),
        (lambda: Augment(size_px=64, eval_resize_px=32), "eval_resize_px"),
        (lambda: Augment(size_px=64, eval_size_px=96, eval_resize_px=80), r"eval_size_px = 96"),
    ],
)
def test_options_that_do_not_belong_together(make: Any, fragment: str) -> None:
    with pytest.raises(ConfigError, match=fragment) as caught:
        make()
    assert caught.value.expected is not None


@pytest.mark.parametrize(
    ("content", "what", "got"),
    [
        (b"][", "is not YAML", "line 1"),
        (b"", "holds no keys", "NoneType"),
        (b"- 1\n- 2", "holds no keys", "list"),
        (b"\xff\xfe\x00", "can not be read", "utf-8"),
        (b"!!python/object/apply:os.system [true]", "is not YAML", "python/object"),
    ],
)
def test_files_that_are_no_configuration(content: bytes, what: str, got: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=what) as caught:
        load(path)
    assert "mine.yaml" in caught.value.what
    assert got in str(caught.value.got)
    assert caught.value.do


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError, match="can not be read") as caught:
            load(path)
        assert str(path) in caught.value.what


@pytest.mark.parametrize("section", list(dict.fromkeys(sections(Config))), ids=lambda s: s.__name__)
def test_every_field_says_what_it_is_and_what_a_resumed_run_may_change(section: type[BaseModel]) -> None:
    for name, field in section.model_fields.items():
        assert field.description, name
        assert isinstance(field.json_schema_extra, dict), name
        assert field.json_schema_extra["role"] in ("identity", "resumable", "placement"), name


def test_options_are_no_unions_that_a_command_line_could_not_tell_apart() -> None:
    for section in set(sections(Config)):
        for name, field in section.model_fields.items():
            if get_origin(field.annotation) in (Union, types.UnionType):
                assert type(None) in get_args(field.annotation), f"{section.__name__}.{name}"
                assert len(get_args(field.annotation)) == 2, f"{section.__name__}.{name}"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({"seed": 1}, {"seed": ("identity", 0, 1)}),
        ({"epochs": 3}, {"epochs": ("resumable", 2, 3)}),
        ({"resources": Resources(workers=1)}, {"resources.workers": ("placement", 2, 1)}),
        ({"optimizer": Optimizer(lr=2e-3)}, {"optimizer.lr": ("identity", 1e-3, 2e-3)}),
        (
            {"augment": BASE.augment.model_copy(update={"eval_size_px": 24, "eval_resize_px": 28})},
            {
                "augment.eval_size_px": ("resumable", None, 24),
                "augment.eval_resize_px": ("resumable", BASE.augment.eval_resize_px, 28),
            },
        ),
        (
            {"tasks": {**BASE.tasks, "kind": Task(kind="binary", label="kind", weight=2)}},
            {"tasks.kind.weight": ("identity", 1.0, 2.0)},
        ),
    ],
)
def test_differences_carry_their_role(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    assert differences(BASE, changed(**changes)) == expected


def test_other_tasks_are_one_difference() -> None:
    fewer = changed(tasks={"kind": BASE.tasks["kind"]})
    assert differences(BASE, fewer) == {"tasks": ("identity", BASE.tasks, fewer.tasks)}


def test_lanes_bound_the_workers_and_groups_divide() -> None:
    changed(resources=Resources(workers=4), order=Order(lanes=4), model=Model(batch_norm="local"))
    changed(resources=Resources(workers=1), max_micro_batch=16)
