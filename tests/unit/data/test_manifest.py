"""The description of a data set: read back whole, or refused with a reason."""

import json
from collections.abc import Callable

import numpy as np
import pytest

from mtl.data.manifest import FORMAT_VERSION, INDEX, MANIFEST, Index, Manifest
from mtl.errors import DataError, NotFound, StoreError
from tests.helpers.datasets import LABELS, tiny
from tests.helpers.memory_store import MemoryStore


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore("memory://cats")
    tiny(store, rows={"train": 30, "val": 9}, row_group_bytes=4_000, shard_bytes=9_000)
    return store


def change(store: MemoryStore, edit: Callable[[dict[str, object]], object]) -> None:
    content = json.loads(store.get(MANIFEST))
    edit(content)
    store.put(MANIFEST, json.dumps(content).encode())


def test_it_comes_back_as_written(store: MemoryStore) -> None:
    manifest = Manifest.load(store)
    assert manifest.labels == LABELS
    assert manifest.split("train").rows == 30
    assert manifest.split("val").rows == 9
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest


def test_there_is_none(store: MemoryStore) -> None:
    store.delete(MANIFEST)
    with pytest.raises(DataError, match="There is no data set at memory://cats") as error:
        Manifest.load(store)
    assert "jobs/prepare.py" in str(error.value)


def test_storage_that_fails_is_not_taken_for_a_missing_data_set(store: MemoryStore) -> None:
    store.fail(0)
    with pytest.raises(StoreError, match="as the test wished"):
        Manifest.load(store)


def test_a_newer_format_is_refused_whatever_it_holds(store: MemoryStore) -> None:
    store.put(MANIFEST, json.dumps({"format_version": FORMAT_VERSION + 1, "shards": [1]}).encode())
    with pytest.raises(DataError, match="written by a newer mtl") as error:
        Manifest.load(store)
    assert f"format_version {FORMAT_VERSION + 1}" in str(error.value)
    assert f"at most {FORMAT_VERSION}" in str(error.value)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"[]", b"null", b"{}", b'{"format_version": "x"}', b'{"name": 1']
)
def test_what_is_no_manifest(store: MemoryStore, content: bytes) -> None:
    store.put(MANIFEST, content)
    with pytest.raises(DataError, match=r"manifest\.json is damaged"):
        Manifest.load(store)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda content: content.pop("labels"), "labels"),
        (lambda content: content.update(colour="red"), "colour"),
        (lambda content: content["splits"]["train"].update(rows="many"), "rows"),
        (lambda content: content["splits"]["train"].update(more=1), "more"),
        (lambda content: content["labels"]["object"].update(kind="word"), "object"),
        (lambda content: content.update(statistics=None), "statistics"),
    ],
)
def test_a_damaged_manifest_is_refused_and_says_where(
    store: MemoryStore, edit: Callable[[dict[str, object]], object], said: str
) -> None:
    change(store, edit)
    with pytest.raises(DataError, match="is damaged") as error:
        Manifest.load(store)
    assert said in str(error.value)


def test_a_split_without_rows(store: MemoryStore) -> None:
    with pytest.raises(DataError, match="no rows in split 'test'") as error:
        Manifest.load(store).split("test")
    assert "splits train, val" in str(error.value)
    empty = {"rows": 0, "row_groups": 0, "bytes": 0, "labels": {}}
    change(store, lambda content: content["splits"].update(test=empty))  # type: ignore[attr-defined, index]
    with pytest.raises(DataError, match="no rows in split 'test'") as error:
        Manifest.load(store).split("test")
    assert "an empty split" in str(error.value)


def test_the_index_of_a_split(store: MemoryStore) -> None:
    manifest = Manifest.load(store)
    for name, split in manifest.splits.items():
        index = Index.load(store, name)
        assert len(index.rows) == split.row_groups
        assert index.rows.sum() == split.rows
        assert index.shard_bytes.sum() == split.bytes
        assert [len(store.get(path)) for path in index.shard_path] == index.shard_bytes.tolist()
        assert all(path.startswith(f"shards/{name}-") for path in index.shard_path)
        for shard in range(len(index.shard_path)):
            inside = np.flatnonzero(index.shard == shard)
            assert index.ordinal[inside].tolist() == list(range(len(inside)))
            assert (np.diff(inside) == 1).all()
            ends = index.offset[inside] + index.length[inside]
            assert (index.offset[inside][1:] >= ends[:-1]).all()
            assert ends[-1] <= index.shard_bytes[shard] - index.footer_length[shard]


def test_an_index_without_the_split_is_empty(store: MemoryStore) -> None:
    index = Index.load(store, "test")
    assert len(index.rows) == len(index.shard_path) == len(index.shard_bytes) == 0


def test_a_missing_or_damaged_index(store: MemoryStore) -> None:
    store.put(INDEX, store.get(INDEX)[:-20])
    with pytest.raises(DataError, match=r"cats/index\.parquet is damaged"):
        Index.load(store, "train")
    store.delete(INDEX)
    with pytest.raises(NotFound, match=r"index\.parquet"):
        Index.load(store, "train")
