"""Writing a data set: readable by range, in mixed order, resumable anywhere, never half done."""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl.data.image import decode, decode_into
from mtl.data.manifest import FOOTERS, INDEX, MANIFEST, Index, Label, Manifest
from mtl.data.plan import Layout
from mtl.data.source import Example
from mtl.data.writer import write
from mtl.errors import DataError, StoreError
from mtl.progress import Progress
from mtl.store import Store
from tests.helpers.memory_store import MemoryStore

LABELS = {
    "object": Label(kind="class", classes=("cat", "dog", "eel")),
    "smiles": Label(kind="binary"),
    "age": Label(kind="real"),
    "turn": Label(kind="angle"),
}
SMALL = Layout(shard_bytes=12_000, row_group_bytes=3_000)


def jpeg(number: int, height: int = 16, width: int = 24) -> bytes:
    """An image of one colour that tells its number."""
    colour = np.array([number % 256, 100, 200], np.uint8)
    return simplejpeg.encode_jpeg(np.broadcast_to(colour, (height, width, 3)).copy(), quality=95)


def example(number: int, split: str = "train") -> Example:
    labels = {
        "object": None if number % 7 == 0 else number % 3,
        "smiles": None if number % 5 == 0 else number % 2,
        "age": None if number % 11 == 0 else number / 4,
        "turn": (number % 628) / 100,
    }
    return Example(f"{split}/{number}.jpg", split, labels, lambda: jpeg(number))


def examples(train: int = 60, val: int = 8) -> list[Example]:
    return [example(i) for i in range(train)] + [example(i, "val") for i in range(val)]


def read_back(store: Store, split: str) -> list[dict[str, object]]:
    """Every row of a split, reading nothing but the byte range of each row group and the cached footers."""
    index = Index.load(store, split)
    rows: list[dict[str, object]] = []
    for i, shard in enumerate(index.shard):
        path, offset, length = index.shard_path[shard], int(index.offset[i]), int(index.length[i])
        data = store.get_range(path, offset, length)
        assert xxhash.xxh3_64_intdigest(data) == index.checksum[i]
        alone = bytearray(b"\xff" * int(index.shard_bytes[shard]))
        alone[offset : offset + length] = data
        footer = store.get_range(FOOTERS, int(index.footer_offset[shard]), int(index.footer_length[shard]))
        metadata = pq.read_metadata(pa.BufferReader(footer))
        table = pq.ParquetFile(pa.BufferReader(bytes(alone)), metadata=metadata).read_row_group(int(index.ordinal[i]))
        assert table.num_rows == index.rows[i]
        rows += table.to_pylist()
    return rows


def content(store: MemoryStore) -> dict[str, bytes]:
    return {key: store.get(key) for key in store.list()}


def test_every_row_comes_back_by_range() -> None:
    store = MemoryStore()
    made = examples()
    manifest = write(store, "set", made, LABELS, SMALL, workers=2, source={"from": "here"})
    assert manifest == Manifest.load(store)
    assert manifest.source["from"] == "here"
    for split, n in (("train", 60), ("val", 8)):
        rows = read_back(store, split)
        expected = {e.id: e for e in made if e.split == split}
        assert len(rows) == n == manifest.splits[split].rows
        for row in rows:
            source = expected.pop(str(row["image_id"]))
            assert row["image"] == source.read()
            assert (row["width"], row["height"]) == (24, 16)
            for name, value in source.labels.items():
                assert row[name] == (value if value is None else pytest.approx(value))
        assert not expected


def test_the_index_is_sorted_and_groups_have_the_size_asked_for() -> None:
    store = MemoryStore()
    manifest = write(store, "set", examples(), LABELS, SMALL)
    table = pq.read_table(pa.BufferReader(store.get(INDEX))).to_pylist()
    assert table == sorted(table, key=lambda row: (row["split"], row["shard"], row["ordinal"]))
    assert len({row["shard"] for row in table if row["split"] == "train"}) > 2
    index = Index.load(store, "train")
    whole = np.flatnonzero(np.append(index.shard[1:] == index.shard[:-1], False))
    assert (index.length[whole] >= SMALL.row_group_bytes).all()
    assert (index.length <= 2 * SMALL.row_group_bytes).all()
    assert manifest.splits["train"].row_groups == len(index.rows)
    assert manifest.splits["train"].bytes == index.shard_bytes.sum()


def test_shards_are_plain_parquet() -> None:
    store = MemoryStore()
    write(store, "set", examples(), LABELS, SMALL)
    file = pq.ParquetFile(pa.BufferReader(store.get(Index.load(store, "train").shard_path[0])))
    assert file.schema_arrow.names == ["image", "image_id", "width", "height", *LABELS]
    assert [str(field.type) for field in file.schema_arrow] == [
        *("binary", "string", "int32", "int32"),
        *("int32", "int32", "float", "float"),
    ]
    image = file.metadata.row_group(0).column(0)
    assert (image.compression, image.is_stats_set, image.has_dictionary_page) == ("UNCOMPRESSED", False, False)


def test_counts_of_labels() -> None:
    manifest = write(MemoryStore(), "set", examples(), LABELS, SMALL)
    counts = manifest.splits["train"].labels
    assert (counts["object"].valid, counts["object"].nulls) == (51, 9)
    assert counts["object"].histogram == tuple(sum(i % 3 == c for i in range(60) if i % 7) for c in range(3))
    assert counts["smiles"].histogram == (24, 24)
    assert (counts["age"].low, counts["age"].high, counts["age"].histogram) == (0.25, 14.75, None)
    assert (counts["turn"].nulls, counts["turn"].low) == (0, 0.0)


def test_a_label_may_lack_everywhere() -> None:
    labels = {"object": Label(kind="class", classes=("cat", "dog")), "age": Label(kind="real")}
    made = [Example(str(i), "train", {"object": 0, "age": None}, lambda: jpeg(1)) for i in range(3)]
    count = write(MemoryStore(), "set", made, labels).splits["train"].labels["age"]
    assert (count.valid, count.nulls, count.low, count.high) == (0, 3, None, None)


def test_statistics_are_those_of_the_train_split() -> None:
    manifest = write(MemoryStore(), "set", examples(), LABELS, SMALL)
    pixels = np.stack([decode(jpeg(i)) for i in range(60)]) / 255
    assert manifest.statistics.mean == pytest.approx(pixels.mean((0, 1, 2)))
    assert manifest.statistics.std == pytest.approx(pixels.std((0, 1, 2)), abs=1e-6)
    assert manifest.statistics.images == 60
    assert manifest.image_px == (16, 24)


def test_neighbours_on_storage_have_nothing_in_common() -> None:
    store = MemoryStore()
    write(store, "set", examples(300, 0), LABELS, Layout(shard_bytes=60_000, row_group_bytes=20_000))
    numbers = [int(str(row["image_id"])[6:-4]) for row in read_back(store, "train")]
    assert np.mean(np.abs(np.diff(numbers)) < 10) < 0.15


def test_listing_order_threads_and_labels_do_not_change_the_fingerprint() -> None:
    once = write(MemoryStore(), "set", examples(), LABELS, SMALL, workers=1)
    again = write(MemoryStore(), "set", examples()[::-1], LABELS, SMALL, workers=3)
    assert once == again
    other = [replace(e, labels={"age": 1.0}) for e in examples()]
    assert write(MemoryStore(), "set", other, {"age": LABELS["age"]}, SMALL).fingerprint == once.fingerprint


@pytest.mark.parametrize("change", ["seed", "layout", "image", "id", "rows"])
def test_images_and_layout_change_the_fingerprint(change: str) -> None:
    made, layout = examples(), SMALL
    once = write(MemoryStore(), "set", made, LABELS, layout).fingerprint
    if change == "seed":
        layout = replace(SMALL, seed=1)
    if change == "layout":
        layout = replace(SMALL, row_group_bytes=4_000)
    if change == "image":
        made[3] = replace(made[3], read=lambda: jpeg(200))
    if change == "id":
        made[3] = replace(made[3], id="other.jpg")
    if change == "rows":
        made.pop(3)
    assert write(MemoryStore(), "set", made, LABELS, layout).fingerprint != once


def test_a_finished_data_set_is_left_alone() -> None:
    store = MemoryStore()
    once = write(store, "set", examples(), LABELS, SMALL)
    before = content(store)
    assert write(store, "set", examples(), LABELS, SMALL) == once
    assert content(store) == before
    assert not store.list("parts/")


def test_another_data_set_is_replaced_only_when_asked() -> None:
    store = MemoryStore()
    write(store, "set", examples(), LABELS, SMALL)
    before = content(store)
    with pytest.raises(DataError, match="--overwrite"):
        write(store, "set", examples(40), LABELS, SMALL)
    assert content(store) == before
    manifest = write(store, "set", examples(20), LABELS, SMALL, overwrite=True)
    fresh = MemoryStore()
    assert write(fresh, "set", examples(20), LABELS, SMALL) == manifest
    assert content(store) == content(fresh)


def test_overwrite_notices_images_with_old_names() -> None:
    store = MemoryStore()
    once = write(store, "set", examples(), LABELS, SMALL)
    made = examples()
    made[3] = replace(made[3], read=lambda: jpeg(200))
    assert write(store, "set", made, LABELS, SMALL, overwrite=True).fingerprint != once.fingerprint


FINISHED = MemoryStore()
write(FINISHED, "set", examples(), LABELS, SMALL, workers=1)
OPERATIONS = len(FINISHED.operations)


@settings(max_examples=30, deadline=None)
@given(nth=st.integers(0, OPERATIONS - 1), after=st.booleans(), workers=st.integers(1, 3))
def test_it_can_stop_anywhere_and_go_on(nth: int, after: bool, workers: int) -> None:
    store = MemoryStore()
    store.fail(nth, after=after)
    try:
        write(store, "set", examples(), LABELS, SMALL, workers=workers)
    except StoreError:
        if MANIFEST in store.list():
            assert len(read_back(store, "train")) == 60
    store.heal()
    write(store, "set", examples(), LABELS, SMALL, workers=workers)
    assert content(store) == content(FINISHED)


@settings(max_examples=30, deadline=None)
@given(nth=st.integers(0, OPERATIONS + 10), after=st.booleans(), other=st.booleans())
def test_replacing_can_stop_anywhere_and_go_on(nth: int, after: bool, other: bool) -> None:
    """Whatever an interrupted replacement left, the plan that is finished in the end is whole."""
    store = MemoryStore()
    write(store, "set", examples(), LABELS, SMALL)
    swapped = [replace(e, labels={**e.labels, "age": 5.0}) for e in examples()]
    store.fail(nth, after=after)
    with suppress(StoreError):
        write(store, "set", swapped, LABELS, SMALL, workers=1, overwrite=True)
    store.heal()
    final = examples() if other else swapped
    write(store, "set", final, LABELS, SMALL, overwrite=MANIFEST in store.list())
    fresh = MemoryStore()
    write(fresh, "set", final, LABELS, SMALL)
    assert content(store) == content(fresh)


def test_what_is_complete_is_not_written_again() -> None:
    store = MemoryStore()
    store.before(lambda operation: _stop() if operation == f"put {MANIFEST}" else None)
    with pytest.raises(InterruptedError):
        write(store, "set", examples(), LABELS, SMALL)
    store.before(None)
    read: list[str] = []

    def counted(e: Example) -> Example:
        def reading() -> bytes:
            read.append(e.id)
            return e.read()

        return replace(e, read=reading)

    store.delete(Index.load(store, "val").shard_path[0])
    write(store, "set", [counted(e) for e in examples(300)[:60] + examples()[60:]], LABELS, SMALL)
    written = [operation for operation in store.operations if operation.startswith("put shards/")]
    assert len(written) == len({*written}) + 1
    assert {name.partition("/")[0] for name in read[68:]} == {"val"}


def _stop() -> None:
    raise InterruptedError


def test_a_damaged_image_is_named() -> None:
    made = examples()
    made[5] = replace(made[5], read=lambda: jpeg(5)[:-2])
    store = MemoryStore()
    with pytest.raises(DataError, match=r"train/5\.jpg is damaged") as error:
        write(store, "set", made, LABELS, SMALL, workers=2)
    assert "--skip-bad" in str(error.value)
    assert MANIFEST not in store.list()
    manifest = write(store, "set", made, LABELS, SMALL, skip_bad=True)
    assert manifest.splits["train"].rows == 59
    assert manifest.source["skipped"] == "1"
    assert "train/5.jpg: Premature end" in manifest.source["skipped_first"]
    assert "train/5.jpg" not in {row["image_id"] for row in read_back(store, "train")}


def test_a_split_of_damaged_images() -> None:
    bad = [Example(f"{i}", "val", example(i).labels, lambda: b"no image") for i in range(3)]
    store = MemoryStore()
    manifest = write(store, "set", examples(9, 0) + bad, LABELS, skip_bad=True)
    assert [*manifest.splits] == ["train"]
    assert manifest.source["skipped"] == "3"
    assert {key.partition("-")[0] for key in store.list("shards/")} == {"shards/train"}
    with pytest.raises(DataError, match="Every image of the train split"):
        write(MemoryStore(), "set", [replace(e, split="train") for e in bad], LABELS, skip_bad=True)


def test_an_error_stops_the_other_threads() -> None:
    read: list[int] = []

    def reading(number: int) -> bytes:
        read.append(number)
        if len(read) == 100:  # past those that are only sized
            raise DataError("The disk is gone.")
        time.sleep(0.001 if len(read) > 100 else 0)
        return jpeg(number)

    made = [Example(f"{i}", "train", example(i).labels, lambda i=i: reading(i)) for i in range(2000)]
    with pytest.raises(DataError, match="The disk is gone"):
        write(MemoryStore(), "set", made, LABELS, SMALL, workers=2)
    assert len(read) < 1000


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ([], "nothing to train on"),
        ([example(1, "val")], "nothing to train on"),
        ([example(1), example(1, "dev")], "unknown split"),
        ([example(1), example(1)], "Two images have the id"),
        ([replace(example(1), labels={**example(1).labels, "object": 3})], "a whole number from 0 to 2"),
        ([replace(example(1), labels={**example(1).labels, "smiles": 0.5})], "a whole number from 0 to 1"),
        ([replace(example(1), labels={**example(1).labels, "age": float("nan")})], "a finite number"),
        ([replace(example(1), labels={**example(1).labels, "turn": 6.3})], "radians"),
    ],
)
def test_what_is_no_data_set_is_refused(made: Sequence[Example], said: str) -> None:
    store = MemoryStore()
    with pytest.raises(DataError, match=said):
        write(store, "set", made, LABELS)
    assert not store.list()


def test_large_images_are_shrunk_when_asked() -> None:
    made = [
        Example("wide", "train", {}, lambda: jpeg(7, 40, 80)),
        Example("tall", "train", {}, lambda: jpeg(7, 90, 30)),
        Example("small", "train", {}, lambda: jpeg(7, 20, 10)),
    ]
    store = MemoryStore()
    manifest = write(store, "set", made, {}, Layout(short_side_px=20))
    rows = {str(row["image_id"]): row for row in read_back(store, "train")}
    assert {name: (row["height"], row["width"]) for name, row in rows.items()} == {
        "wide": (20, 40),
        "tall": (60, 20),
        "small": (20, 10),
    }
    assert rows["small"]["image"] == jpeg(7, 20, 10)
    assert decode_into(bytes(rows["wide"]["image"]), np.empty((20, 40, 3), np.uint8))
    assert manifest.source["short_side_px"] == "20"


def test_progress_counts_examples_and_resumes() -> None:
    class Recorder:
        def __init__(self) -> None:
            self.seen: list[float] = []

        def update(self, done: float, note: str = "") -> None:
            self.seen.append(done)

    for store in (MemoryStore(),) * 2:
        recorder = Recorder()
        progress: Progress = recorder  # type: ignore[assignment]
        write(store, "set", examples(), LABELS, SMALL, progress=progress)
        assert recorder.seen[-1] == 68
        assert recorder.seen == sorted(recorder.seen)
