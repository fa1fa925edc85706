"""Data sets that were damaged after they were written: each fault is an error of its kind, and never a wrong sample."""

import io
import json
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtl.config import Augment
from mtl.data.batch import Batch
from mtl.data.image import decode
from mtl.data.loader import Loader, Target
from mtl.data.manifest import FOOTERS, INDEX, MANIFEST, Index, Manifest
from mtl.data.order import Order
from mtl.data.reader import Reader
from mtl.data.transforms import EvalView
from mtl.errors import DataError, MtlError, NotFound
from tests.helpers.datasets import LABELS, tiny
from tests.helpers.memory_store import MemoryStore

Fault = Callable[[MemoryStore, Index], None]


def deliver(store: MemoryStore) -> list[Batch]:
    """Everything that a job reads, in the order that it reads it."""
    manifest, index = Manifest.load(store), Index.load(store, "train")
    order = Order(
        index.rows,
        fingerprint=manifest.fingerprint,
        split="train",
        seed=0,
        lanes=2,
        block_row_groups=2,
        global_batch=8,
        keep_tail=True,
        shuffle=False,
    )
    view = EvalView(Augment(size_px=16, eval_resize_px=16, pixels="exact"))
    targets = (Target("what", "object", integer=True), Target("where", "angle", integer=False))
    return list(Loader(Reader(store, index, tuple(LABELS)), order, view, targets, range(order.steps)))


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :]


def changed(path: str | None, change: Callable[[bytes], bytes]) -> Fault:
    """Rewrite an object; None is the first shard."""

    def fault(store: MemoryStore, index: Index) -> None:
        name = path or index.shard_path[0]
        store.put(name, change(store.get(name)))

    return fault


def table_changed(change: Callable[[pa.Table], pa.Table]) -> Fault:
    """Write the first shard again with other contents under the same name."""

    def fault(store: MemoryStore, index: Index) -> None:
        name, out = index.shard_path[0], io.BytesIO()
        pq.write_table(change(pq.read_table(pa.BufferReader(store.get(name)))), out)
        store.put(name, out.getvalue())

    return fault


def index_changed(change: Callable[[pa.Table], pa.Table]) -> Fault:
    def rewrite(data: bytes) -> bytes:
        out = io.BytesIO()
        pq.write_table(change(pq.read_table(pa.BufferReader(data))), out)
        return out.getvalue()

    return changed(INDEX, rewrite)


def column(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Fault:
    def rewrite(table: pa.Table) -> pa.Table:
        at = table.column_names.index(name)
        return table.set_column(at, table.field(at), pa.array(change(table[name].to_numpy().copy())))

    return index_changed(rewrite)


def swapped(store: MemoryStore, index: Index) -> None:
    a, b = index.shard_path[:2]
    first, second = store.get(a), store.get(b)
    store.put(a, second)
    store.put(b, first)


def version(data: bytes) -> bytes:
    return json.dumps({**json.loads(data), "format_version": 99}).encode()


FAULTS: dict[str, tuple[Fault, type[MtlError]]] = {
    "a bit of the first row group": (changed(None, lambda data: flip(data, 40)), DataError),
    "a bit in the middle": (changed(None, lambda data: flip(data, len(data) // 2)), DataError),
    "a byte inserted": (changed(None, lambda data: data[:50] + b"\0" + data[50:]), DataError),
    "a byte missing": (changed(None, lambda data: data[:50] + data[51:]), DataError),
    "zeros of the same length": (changed(None, lambda data: bytes(len(data))), DataError),
    "cut in half": (changed(None, lambda data: data[: len(data) // 2]), MtlError),
    "emptied": (changed(None, lambda _: b""), MtlError),
    "missing": (lambda store, index: store.delete(index.shard_path[0]), NotFound),
    "exchanged for another shard": (swapped, DataError),
    "written again": (table_changed(lambda table: table), DataError),
    "written again in another order": (table_changed(lambda t: t.take([*reversed(range(len(t)))])), DataError),
    "written again without images": (table_changed(lambda table: table.drop_columns(["image"])), DataError),
    "footers: missing": (lambda store, _: store.delete(FOOTERS), NotFound),
    "footers: empty": (changed(FOOTERS, lambda _: b""), MtlError),
    "index: missing": (lambda store, _: store.delete(INDEX), NotFound),
    "index: empty": (changed(INDEX, lambda _: b""), DataError),
    "index: cut": (changed(INDEX, lambda data: data[:-9]), DataError),
    "index: no Parquet": (changed(INDEX, lambda data: bytes(len(data))), DataError),
    "index: another checksum": (column("checksum", lambda values: values + np.uint64(1)), DataError),
    "index: offsets moved": (column("offset", lambda values: values + 1), DataError),
    "index: lengths grown": (column("length", lambda values: values + 1), MtlError),
    "manifest: missing": (lambda store, _: store.delete(MANIFEST), DataError),
    "manifest: empty": (changed(MANIFEST, lambda _: b""), DataError),
    "manifest: cut": (changed(MANIFEST, lambda data: data[:-20]), DataError),
    "manifest: no object": (changed(MANIFEST, lambda _: b"[]"), DataError),
    "manifest: of a newer version": (changed(MANIFEST, version), DataError),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_an_error(name: str) -> None:
    fault, kind = FAULTS[name]
    tiny(store := MemoryStore(), rows={"train": 96})
    index = Index.load(store, "train")
    assert len(index.shard_path) >= 2
    fault(store, index)
    with pytest.raises(kind) as caught:
        deliver(store)
    assert str(caught.value)


def test_bits_of_the_shards_own_footer_do_not_matter() -> None:
    """The footer that counts is the one in footers.bin; the shards' own are for other readers."""
    tiny(store := MemoryStore(), rows={"train": 96})
    sound = deliver(store)
    for path in Index.load(store, "train").shard_path:
        store.put(path, flip(store.get(path), len(store.get(path)) - 20))
    for got, expected in zip(deliver(store), sound, strict=True):
        assert got.ledger == expected.ledger
        np.testing.assert_array_equal(got.images, expected.images)


def test_without_a_fault_every_row_is_delivered() -> None:
    tiny(store := MemoryStore(), rows={"train": 96})
    reader = Reader(store, Index.load(store, "train"), tuple(LABELS))
    groups = map(reader.read, range(len(reader.index.rows)))
    stored = [decode(group.image(row)) for group in groups for row in range(len(group.ids))]
    images = np.concatenate([batch.images[batch.status == 0] for batch in deliver(store)])
    assert {image.tobytes() for image in images} == {image.tobytes() for image in stored}
