"""Row groups by range: what was written, verified, or an error that names the shard."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from mtl.data.manifest import FOOTERS, Index
from mtl.data.reader import Reader
from mtl.errors import DataError, NotFound, StoreError
from tests.helpers.datasets import LABELS, tiny
from tests.helpers.memory_store import MemoryStore

COLUMNS = tuple(LABELS)


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore()
    tiny(store, rows={"train": 40, "val": 5}, row_group_bytes=4_000, shard_bytes=12_000, missing=0.3)
    return store


def test_row_groups_hold_what_the_shards_do(store: MemoryStore) -> None:
    index = Index.load(store, "train")
    reader = Reader(store, index, COLUMNS)
    assert len(index.shard_path) > 1
    for number, (shard, ordinal) in enumerate(zip(index.shard, index.ordinal, strict=True)):
        file = pq.ParquetFile(pa.BufferReader(store.get(index.shard_path[shard])))
        expected = file.read_row_group(int(ordinal)).to_pylist()
        group = reader.read(number)
        assert group.number == number
        assert len(expected) == index.rows[number] == len(group.ids)
        for row, values in enumerate(expected):
            assert bytes(group.image(row)) == values["image"]
            assert group.ids[row] == xxhash.xxh3_64_intdigest(values["image_id"].encode())
            for name in ("object", "kind"):
                assert group.labels[name][row] == (-1 if values[name] is None else values[name])
            for name in ("angle", "amount"):
                if values[name] is None:
                    assert math.isnan(group.labels[name][row])
                else:
                    assert group.labels[name][row] == np.float32(values[name])
        assert {name: values.dtype for name, values in group.labels.items()} == {
            "object": np.int64,
            "kind": np.int64,
            "angle": np.float32,
            "amount": np.float32,
        }


def test_only_the_columns_asked_for(store: MemoryStore) -> None:
    assert [*Reader(store, Index.load(store, "val"), ("kind",)).read(0).labels] == ["kind"]
    assert not Reader(store, Index.load(store, "val"), ()).read(0).labels


def test_one_range_a_row_group_and_one_a_footer(store: MemoryStore) -> None:
    index = Index.load(store, "train")
    before = len(store.operations)
    reader = Reader(store, index, COLUMNS)
    assert len(store.operations) == before
    for _ in range(2):
        for number in range(len(index.rows)):
            reader.read(number)
    read = store.operations[before:]
    assert read.count(f"get {FOOTERS}") == len(index.shard_path)
    assert len(read) == len(index.shard_path) + 2 * len(index.rows)


def test_threads_may_share_a_reader(store: MemoryStore) -> None:
    index = Index.load(store, "train")
    reader = Reader(store, index, COLUMNS)
    numbers = [*range(len(index.rows))] * 8
    with ThreadPoolExecutor(4) as pool:
        groups = list(pool.map(reader.read, numbers))
    for number, group in zip(numbers, groups, strict=True):
        assert group.number == number
        assert len(group.ids) == index.rows[number]


def test_a_flipped_byte_is_an_error_that_names_the_shard(store: MemoryStore) -> None:
    index = Index.load(store, "train")
    number = len(index.rows) - 1
    path = index.shard_path[index.shard[number]]
    data = bytearray(store.get(path))
    data[index.offset[number] + index.length[number] // 2] ^= 1
    store.put(path, bytes(data))
    reader = Reader(store, index, COLUMNS)
    reader.read(0)
    with pytest.raises(DataError, match="is not what was written") as error:
        reader.read(number)
    assert f"Row group {index.ordinal[number]} of {store.uri}/{path}" in str(error.value)


def test_bytes_that_were_wrong_once_are_read_again(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, read, wrong = Reader(store, Index.load(store, "train"), COLUMNS), store.get_range_versioned, [True]

    def spoilt(key: str, offset: int, length: int) -> tuple[bytes, str]:
        data, version = read(key, offset, length)
        return (bytes(length) if wrong and wrong.pop() else data), version

    monkeypatch.setattr(store, "get_range_versioned", spoilt)
    assert bytes(reader.read(0).image(0))[:2] == b"\xff\xd8"
    assert not wrong
    assert reader.stats().rereads == 1


def test_a_shard_rewritten_meanwhile_is_an_error(store: MemoryStore) -> None:
    """Even with bytes whose checksums are right: which of the two a row comes from must not depend on time."""
    index = Index.load(store, "train")
    reader, path = Reader(store, index, COLUMNS), index.shard_path[0]
    reader.read(0)
    store.put(path, store.get(path))
    with pytest.raises(StoreError, match=f"{path} was rewritten"):
        reader.read(0)
    assert len(Reader(store, index, COLUMNS).read(0).ids)


def test_statistics_count_what_was_read(store: MemoryStore) -> None:
    index = Index.load(store, "train")
    reader = Reader(store, index, COLUMNS)
    nothing = reader.stats()
    assert (nothing.requests, nothing.bytes, nothing.storage_s, nothing.parse_s) == (0, 0, 0, 0)
    for number in range(len(index.rows)):
        reader.read(number)
    all_of_it = reader.stats()
    assert all_of_it.since(nothing) == all_of_it
    assert all_of_it.requests == len(index.rows) + len(index.shard_path)
    assert all_of_it.bytes == index.length.sum() + index.footer_length.sum()
    reader.read(0)
    assert reader.stats().since(all_of_it).requests == 1


def test_a_missing_shard_is_named(store: MemoryStore) -> None:
    index = Index.load(store, "train")
    store.delete(index.shard_path[0])
    with pytest.raises(NotFound, match=index.shard_path[0]):
        Reader(store, index, COLUMNS).read(0)


def test_a_failure_of_storage_passes_through_and_does_not_stick(store: MemoryStore) -> None:
    reader = Reader(store, Index.load(store, "train"), COLUMNS)
    for nth in (0, 1):
        store.fail(nth)
        with pytest.raises(StoreError, match="as the test wished"):
            reader.read(0)
    assert len(reader.read(0).ids)


def test_footers_of_other_shards(store: MemoryStore) -> None:
    """A data set that was half overwritten: ranges and checksums hold, the footers tell of other places."""
    other = MemoryStore()
    tiny(other, rows={"train": 40}, row_group_bytes=8_000, shard_bytes=12_000)
    index = Index.load(store, "train")
    at = Index.load(other, "train")
    store.put(FOOTERS, other.get(FOOTERS))
    mixed = replace(index, footer_offset=at.footer_offset[:1].repeat(9), footer_length=at.footer_length[:1].repeat(9))
    with pytest.raises(DataError, match="can not be decoded") as error:
        Reader(store, mixed, COLUMNS).read(1)
    assert index.shard_path[0] in str(error.value)


def test_damaged_footers(store: MemoryStore) -> None:
    store.put(FOOTERS, bytes(len(store.get(FOOTERS))))
    with pytest.raises(DataError, match="can not be decoded"):
        Reader(store, Index.load(store, "train"), COLUMNS).read(0)


def test_a_label_that_the_shards_lack(store: MemoryStore) -> None:
    with pytest.raises(DataError, match="age"):
        Reader(store, Index.load(store, "train"), ("age",)).read(0)
