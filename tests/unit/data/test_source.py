"""Sources: trees, tables, drawings; derived labels; carved splits."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl.data.derivation import Derivation
from mtl.data.files import Images, open_images
from mtl.data.image import decode
from mtl.data.manifest import Label
from mtl.data.shapes import draw
from mtl.data.source import Example, Source, carve, derive, image_folder, shapes, table
from mtl.errors import DataError


def tree(root: Path, *paths: str) -> Images:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())
    return open_images(root)


def test_classes_without_splits(tmp_path: Path) -> None:
    source = image_folder(tree(tmp_path, "dog/1.jpg", "cat/1.jpg", "cat/deep/2.jpg", "cat/readme.md"), "object")
    assert not source.presplit
    assert source.labels == {"object": Label(kind="class", classes=("cat", "dog"))}
    assert [(e.id, e.split, e.labels["object"], e.read()) for e in source.examples] == [
        ("cat/1.jpg", "train", 0, b"cat/1.jpg"),
        ("cat/deep/2.jpg", "train", 0, b"cat/deep/2.jpg"),
        ("dog/1.jpg", "train", 1, b"dog/1.jpg"),
    ]
    assert source.notes == ("1 files that are no images are ignored",)


def test_classes_in_splits(tmp_path: Path) -> None:
    source = image_folder(tree(tmp_path, "train/dog/1.jpg", "val/cat/1.jpg", "test/eel/1.jpg"))
    assert source.presplit
    assert source.labels["class"].classes == ("cat", "dog", "eel")
    assert {e.split: e.labels["class"] for e in source.examples} == {"train": 1, "val": 0, "test": 2}


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    source = image_folder(tree(tmp_path, "train/1.jpg", "plane/1.jpg"))
    assert not source.presplit
    assert source.labels["class"].classes == ("plane", "train")


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        ((), "no image"),
        (("1.jpg", "cat/2.jpg"), "1.jpg"),
        (("train/cat/1.jpg", "validation/cat/2.jpg"), "validation/cat/2.jpg"),
        (("train/cat/1.jpg", "val/2.jpg"), "val/2.jpg"),
    ],
)
def test_trees_of_another_layout_are_refused(tmp_path: Path, paths: tuple[str, ...], said: str) -> None:
    with pytest.raises(DataError, match=said):
        image_folder(tree(tmp_path, *paths))


def csv(tmp_path: Path, text: str) -> Path:
    (tmp_path / "t.csv").write_text(text)
    return tmp_path / "t.csv"


def test_a_table(tmp_path: Path) -> None:
    images = tree(tmp_path / "i", "a.jpg", "b/c.jpg")
    text = '\ufeffpath,split,object,age,smiles\n./a.jpg,train,"cat, big",3.5,1\n\nb/c.jpg,val,,,\n'
    source = table(csv(tmp_path, text), images)
    assert source.presplit
    assert {name: label.kind for name, label in source.labels.items()} == {
        "object": "class",
        "age": "real",
        "smiles": "binary",
    }
    assert [(e.id, e.split, dict(e.labels), e.read()) for e in source.examples] == [
        ("a.jpg", "train", {"object": 0, "age": 3.5, "smiles": 1}, b"a.jpg"),
        ("b/c.jpg", "val", {"object": None, "age": None, "smiles": None}, b"b/c.jpg"),
    ]


def test_a_table_without_splits_and_with_given_kinds(tmp_path: Path) -> None:
    images = tree(tmp_path / "i", "a.jpg", "b.jpg")
    source = table(csv(tmp_path, "path,grade\na.jpg,10\nb.jpg,9\n"), images, {"grade": "class"})
    assert not source.presplit
    assert source.labels["grade"].classes == ("9", "10")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "columns in the first line"),
        ("file,x\na.jpg,1\n", "columns in the first line"),
        ("path,x,x\na.jpg,1,1\n", "each once"),
        ("path,x\n", "no row"),
        ("path\na.jpg\n", "no label column"),
        ("path,x\na.jpg\n", "t.csv line 2 has 1 cells"),
        ("path,x\na.jpg,1\n\nb.jpg,1\n", "t.csv line 4, column path, and 0 more rows"),
        ("path,x\na.jpg,1\na.jpg,2\n", "more than once"),
        ("path,split,x\na.jpg,training,1\n", "t.csv line 2, column split, is no split"),
        ("path,x\na.jpg,inf\n", "t.csv line 2, column x, is not a value of kind real"),
        ("path,width\na.jpg,1\n", "can not have this name"),
        ('path,x\na.jpg,"1\n', "not a CSV"),
    ],
)
def test_wrong_tables_are_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        table(csv(tmp_path, text), tree(tmp_path / "i", "a.jpg"))


def test_kinds_of_unknown_columns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no label column called age"):
        table(csv(tmp_path, "path,x\na.jpg,1\n"), tree(tmp_path / "i", "a.jpg"), {"age": "real"})


def test_shapes_are_drawn_on_demand() -> None:
    source = shapes(60, seed=3)
    assert {e.split for e in source.examples} == {"train", "val", "test"}
    example = source.examples[7]
    assert example.labels == draw(7, seed=3).labels
    error = decode(example.read()).astype(int) - draw(7, seed=3).image
    assert abs(error).mean() < 8
    assert [e.split for e in shapes(40, seed=4).examples] == [e.split for e in source.examples[:40]]


def plain(ids: list[str], *, presplit: bool = False, splits: str = "train") -> Source:
    examples = [Example(name, splits, {"object": i % 3}, name.encode) for i, name in enumerate(ids)]
    return Source(examples, {"object": Label(kind="class", classes=("cat", "car", "eel"))}, presplit)


def test_a_derived_label(tmp_path: Path) -> None:
    mapping = Derivation("kind", "object", {"cat": "animal", "car": "vehicle", "fox": "animal"}, tmp_path)
    source = derive(plain(["a", "b", "c", "d"]), mapping)
    assert source.labels["kind"] == Label(kind="class", classes=("animal", "vehicle"))
    assert [e.labels["kind"] for e in source.examples] == [0, 1, None, 0]
    assert "1 of 3 classes of object have none, so 1 images lack it" in source.notes[0]
    assert "also names fox" in source.notes[1]
    with pytest.raises(DataError, match="already exists"):
        derive(source, mapping)
    with pytest.raises(DataError, match="there is no 'thing'"):
        derive(source, replace(mapping, old="thing", new="x"))


def test_a_missing_label_stays_missing_when_derived(tmp_path: Path) -> None:
    source = plain(["a"])
    source = replace(source, examples=[replace(source.examples[0], labels={"object": None})])
    derived = derive(source, Derivation("kind", "object", {"cat": "animal"}, tmp_path))
    assert derived.examples[0].labels["kind"] is None


def splits(source: Source) -> dict[str, str]:
    return {example.id: example.split for example in source.examples}


def test_default_splits() -> None:
    ids = [str(i) for i in range(4000)]
    counts = Counter(splits(carve(plain(ids))).values())
    assert 330 < counts["val"] < 470
    assert 330 < counts["test"] < 470
    counts = Counter(splits(carve(plain(ids, presplit=True))).values())
    assert 150 < counts["val"] < 250
    assert counts["test"] == 0
    with_val = plain(ids, presplit=True)
    with_val = replace(with_val, examples=[*with_val.examples, Example("v", "val", {"object": 0}, bytes)])
    assert carve(with_val).examples == with_val.examples


def test_a_share_of_zero_carves_nothing() -> None:
    assert {*splits(carve(plain(["a", "b", "c"]), {"val": 0.0})).values()} == {"train"}


@given(st.sets(st.text(), min_size=1, max_size=60), st.randoms())
def test_carving_depends_on_the_id_alone(ids: set[str], random) -> None:
    order = sorted(ids)
    shares = {"val": 0.2, "test": 0.1}
    once = splits(carve(plain(order), shares))
    random.shuffle(order)
    assert splits(carve(plain(order), shares)) == once
    assert "train" in once.values()
    assert len(ids) < 3 or {*once.values()} == {"train", "val", "test"}


def test_more_images_never_move_old_ones() -> None:
    few, many = (splits(carve(plain([str(i) for i in range(n)]), {"val": 0.2})) for n in (200, 2000))
    assert few.items() <= many.items()


@pytest.mark.parametrize(
    "shares", [{"val": 1.0}, {"val": -0.1}, {"val": 0.6, "test": 0.4}, {"dev": 0.1}, {"train": 0.1}]
)
def test_impossible_shares(shares: dict[str, float]) -> None:
    with pytest.raises(DataError, match="can not be carved"):
        carve(plain(["a", "b"]), shares)


def test_a_split_that_exists_is_not_carved() -> None:
    with pytest.raises(DataError, match="can not be carved"):
        carve(plain(["a", "b"], splits="val"), {"val": 0.1})
