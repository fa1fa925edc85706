"""The ids of the images of some steps, for people: read from the shards, without the images."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow.parquet as pq

from mtl.data.manifest import Index
from mtl.data.mixture import AnyOrder
from mtl.data.seekable import Ranged
from mtl.store import Store


def image_ids(order: AnyOrder, sets: Sequence[tuple[Store, Index]], steps: range) -> list[str]:
    """The ids of the samples of `steps`, step by step in the order of their positions.

    Args:
        order: of training.
        sets: folder and training index of each data set, the row groups of which are numbered one after the other.

    Raises:
        StoreError: storage failed.
    """
    firsts = np.cumsum([0, *(len(index.rows) for _, index in sets)])
    known: dict[int, list[str]] = {}

    def name(group: int, row: int) -> str:
        if group not in known:
            number = int(np.searchsorted(firsts, group, side="right")) - 1
            store, index = sets[number]
            known[group] = _read(store, index, group - int(firsts[number]))
        return known[group][row]

    return [name(group, row) for step in steps for group, row in _rows(order, step)]


def _rows(order: AnyOrder, step: int) -> Iterator[tuple[int, int]]:
    epoch, batch = divmod(step, order.steps)
    positions = np.arange(batch * order.global_batch, min((batch + 1) * order.global_batch, order.n))
    group, row = np.empty(len(positions), np.int64), np.empty(len(positions), np.int64)
    lanes = order.epoch(epoch).lanes
    for lane in range(order.lanes):
        places = np.flatnonzero(positions % order.lanes == lane)
        while len(places):
            index = int(positions[places[0]]) // order.lanes
            block = lanes[lane].block(int(lanes[lane].block_of(np.array([index]))[0]))
            here, places = places[: block.stop - index], places[block.stop - index :]
            at = slice(index - block.start, index - block.start + len(here))
            group[here], row[here] = block.rows.group[at], block.rows.row[at]
    yield from zip(group.tolist(), row.tolist(), strict=True)


def _read(store: Store, index: Index, number: int) -> list[str]:
    shard = int(index.shard[number])
    file = pq.ParquetFile(Ranged(store, index.shard_path[shard], int(index.shard_bytes[shard])))
    names = file.read_row_group(int(index.ordinal[number]), columns=["image_id"])["image_id"].to_pylist()
    return names if index.repeats is None else [names[row] for row in index.repeats.on_storage(number).tolist()]
