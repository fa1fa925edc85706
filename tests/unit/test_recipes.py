"""Recipes: complete by themselves, listed where a name is wrong, inferred for any data set."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl import recipes
from mtl.data.manifest import Label, LabelCount, LabelKind, Manifest, Split, Statistics
from mtl.errors import ConfigError

KINDS: tuple[LabelKind, ...] = ("class", "binary", "real", "angle")
TASK_KIND = {"class": "multiclass", "binary": "binary", "real": "regression", "angle": "circular"}


def manifest(*kinds: LabelKind, rows: int = 1000, px: tuple[int, int] = (32, 32), name: str = "mine") -> Manifest:
    labels = {kind: Label(kind=kind, classes=("cat", "dog", "eel") if kind == "class" else None) for kind in kinds}
    counts = {kind: LabelCount(valid=rows, nulls=0, low=0, high=1) for kind in kinds}
    split = Split(rows=rows, row_groups=1, bytes=1, labels=counts)
    return Manifest(
        name=name,
        labels=labels,
        splits={"train": split, "val": split, "test": split},
        statistics=Statistics(mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2), images=rows),
        image_px=px,
        fingerprint="0",
    )


def test_every_recipe_has_its_own_name_and_says_what_it_is() -> None:
    for name, config in recipes.RECIPES.items():
        assert recipes.get(name) is config
        assert config.recipe == config.name == name
    assert set(recipes.ABOUT) == {*recipes.RECIPES, "auto"}


def test_an_unknown_recipe_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match="no recipe 'imagnet'") as caught:
        recipes.get("imagnet")
    assert all(name in str(caught.value.expected) for name in recipes.ABOUT)
    assert caught.value.do


def test_auto_makes_one_task_for_each_label() -> None:
    config = recipes.auto("s3://bucket/mine", manifest(*KINDS))
    assert {name: task.kind for name, task in config.tasks.items()} == TASK_KIND
    assert config.data == "s3://bucket/mine"


def test_auto_mirrors_only_where_no_label_could_change() -> None:
    assert recipes.auto("x", manifest("class", "binary")).augment.flip > 0
    for kind in ("angle", "real"):
        assert recipes.auto("x", manifest("class", kind)).augment.flip == 0


@given(
    rows=st.integers(1, 10**8),
    px=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    kinds=st.sets(st.sampled_from(KINDS), min_size=1),
    name=st.text(),
)
def test_auto_fits_any_data_set(rows: int, px: tuple[int, int], kinds: set[LabelKind], name: str) -> None:
    config = recipes.auto("x", manifest(*kinds, rows=rows, px=px, name=name))
    assert config.global_batch <= max(rows, 32)


def test_auto_needs_a_label() -> None:
    with pytest.raises(ConfigError, match="no label columns"):
        recipes.auto("x", manifest())
