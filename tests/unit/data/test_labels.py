"""Label columns from text."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl.data.derivation import Derivation
from mtl.data.labels import Value, check_name, encode, parse_kinds, sort_classes
from mtl.data.manifest import Label
from mtl.errors import ConfigError, DataError


def where(row: int) -> str:
    return f"t.csv line {row + 2}, column x,"


@pytest.mark.parametrize(
    ("cells", "kind", "values"),
    [
        (["cat", "", "ant"], "class", [1, None, 0]),
        (["0", "1", ""], "binary", [0, 1, None]),
        (["true", "False"], "binary", [1, 0]),
        (["1", "2.5", "", "-3e2"], "real", [1.0, 2.5, None, -300.0]),
    ],
)
def test_kinds_are_inferred(cells: list[str], kind: str, values: list[float | None]) -> None:
    label, encoded = encode("x", cells, None, where)
    assert label.kind == kind
    assert encoded == values


def test_a_given_kind_wins() -> None:
    assert encode("x", ["0", "1", "10", "2"], "class", where) == (
        Label(kind="class", classes=("0", "1", "2", "10")),
        [0, 1, 3, 2],
    )
    assert encode("x", ["0", "1"], "real", where)[0].kind == "real"
    assert encode("x", ["0", "3.14"], "angle", where) == (Label(kind="angle"), [0.0, 3.14])


@pytest.mark.parametrize(
    ("cells", "kind", "said"),
    [
        (["1", "x2"], None, "line 3, column x, is not a number"),
        (["1", "nan"], None, "line 3, column x, is not a value of kind real"),
        (["0", "2"], "binary", "line 3, column x, is not a value of kind binary"),
        (["0", "270"], "angle", "radians"),
        (["0", "-0.1"], "angle", "radians"),
        (["", ""], None, "no value in any row"),
    ],
)
def test_a_wrong_cell_is_named(cells: list[str], kind: str | None, said: str) -> None:
    with pytest.raises(DataError, match=said):
        encode("x", cells, kind, where)


@pytest.mark.parametrize("name", ["image", "split", "", "a b", "1st", "a/b", "x" * 64])
def test_names_that_can_not_be_columns(name: str) -> None:
    with pytest.raises(DataError):
        check_name(name)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_reals_round_trip(values: list[float]) -> None:
    assert encode("x", [repr(value) for value in values], "real", where)[1] == values


@given(st.lists(st.text(min_size=1), min_size=1))
def test_class_ids_point_at_their_names(names: list[str]) -> None:
    label, ids = encode("x", names, "class", where)
    assert label.classes == sort_classes(set(names))
    assert [label.classes[i] for i in ids] == names


def test_kinds_from_the_command_line() -> None:
    assert parse_kinds(["a=class", "b=angle"]) == {"a": "class", "b": "angle"}
    with pytest.raises(ConfigError, match="one of class, binary, real, angle"):
        parse_kinds(["a=class", "b=degrees"])


OBJECTS = Label(kind="class", classes=("cat", "car", "eel"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("kind.csv", "old,new\ncat,animal\ncar, vehicle\nfox,animal\n"),
        ("kind.json", '{"cat": "animal", "car": "vehicle"}'),
    ],
)
def test_a_coarser_label(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    derivation = Derivation.load(f"kind=object:{tmp_path / name}")
    assert (derivation.new, derivation.old) == ("kind", "object")
    assert derivation.apply(OBJECTS) == (Label(kind="class", classes=("animal", "vehicle")), [0, 1, None])


def test_no_class_in_common_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "kind.csv").write_text("old,new\nfox,animal\n")
    derivation = Derivation.load(f"kind=object:{tmp_path / 'kind.csv'}")
    for label in (OBJECTS, Label(kind="real")):
        with pytest.raises(DataError, match="names no class"):
            derivation.apply(label)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("kind.csv", "cat,animal\n"),
        ("kind.csv", "old,new\ncat,animal\ncat,vehicle\n"),
        ("kind.csv", "old,new\ncat,\n"),
        ("kind.json", "[]"),
        ("kind.json", '{"cat": 1}'),
        ("kind.json", "{"),
    ],
)
def test_damaged_maps_are_refused(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=name):
        Derivation.load(f"kind=object:{tmp_path / name}")


@pytest.mark.parametrize("text", ["kind", "kind=object", "kind=:file", "=object:file", "kind=object:", "im age=o:f"])
def test_the_flag_must_be_complete(text: str) -> None:
    with pytest.raises(DataError):
        Derivation.load(text)


def test_a_map_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="can not be read"):
        Derivation.load(f"kind=object:{tmp_path / 'kind.csv'}")


def test_angles_stop_before_a_full_turn() -> None:
    with pytest.raises(DataError):
        encode("x", [repr(2 * math.pi)], "angle", where)


CATS = ("cat", "dog", "owl")


@pytest.mark.parametrize(
    ("cells", "kind", "label", "values"),
    [
        (["cat|dog", "|", "", "?owl|cat"], None, Label(kind="set", classes=CATS), [(0, 1), (), None, (-3, 0)]),
        (["mid", "low"], "class:low|mid|high", Label(kind="class", classes=("low", "mid", "high")), [1, 0]),
        (["0.5 2", "", "-1 1e3"], None, Label(kind="vector", classes=("0", "1")), [(0.5, 2.0), None, (-1.0, 1000.0)]),
        (["1 3"], "vector:x|y", Label(kind="vector", classes=("x", "y")), [(1.0, 3.0)]),
        (["0.25 0.75"], "soft:cat|dog", Label(kind="soft", classes=("cat", "dog")), [(0.25, 0.75)]),
    ],
)
def test_lists_and_given_names(cells: list[str], kind: str | None, label: Label, values: list[Value]) -> None:
    assert encode("x", cells, kind, where) == (label, values)


def test_an_unknown_component_is_nan() -> None:
    _, values = encode("x", ["? 2", "1 ?"], "vector", where)
    assert np.array(values) == pytest.approx(np.array([[math.nan, 2], [1, math.nan]]), nan_ok=True)


@pytest.mark.parametrize(
    ("cell", "kind"),
    [
        ("cat|cow", "set:cat|dog"),
        ("cat|?cat", "set"),
        ("1 2 3", "vector:x|y"),
        ("? ?", "vector"),
        ("1 inf", "vector"),
        ("0.5 0.6", "soft"),
        ("1.5 -0.5", "soft"),
        ("big", "class:low|high"),
    ],
)
def test_cells_that_are_no_value(cell: str, kind: str) -> None:
    with pytest.raises(DataError, match=f"not a value of kind {kind.partition(':')[0]}"):
        encode("x", [cell], kind, where)


@pytest.mark.parametrize("text", ["real:a|b", "class:a", "class:a|a", "class:a||b"])
def test_names_that_can_not_be(text: str) -> None:
    with pytest.raises(ConfigError, match="--kinds does not know"):
        parse_kinds([f"x={text}"])
