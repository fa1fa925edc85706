"""How much memory a worker's part of the read path takes: the arithmetic behind its bounds, known before the start.

blocks      of each lane of ours the block it is in: the largest there can be in a lane of its data set
prefetch    the budget, or one batch and one block if that is more
batches     one that is trained on and one that is being made
kept        the training split, where loader.memory keeps it
evaluation  the same of an evaluation, which reads with the same budget while the training's read-ahead stays
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from mtl.data.memory import decoded_bytes
from mtl.data.mixture import AnyOrder
from mtl.data.order import I64, Order

EVALUATION_ROW_GROUPS = 2
"""Row groups in a block of an evaluation."""


@dataclass(frozen=True)
class Footprint:
    """Bytes of one worker, by what they are for."""

    blocks: int
    prefetch: int
    batches: int
    kept: int
    evaluation: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.blocks + self.prefetch + self.batches + self.kept + self.evaluation

    def describe(self) -> str:
        """The sum, for people."""
        parts = {"blocks": self.blocks, "prefetch": self.prefetch, "batches": self.batches, "kept": self.kept}
        parts |= {"evaluation": self.evaluation}
        terms = " + ".join(f"{name} {value / 1e6:,.1f}" for name, value in parts.items() if value)
        return f"{terms} = {self.total / 1e6:,.1f} MB a worker"


def footprint(
    order: AnyOrder,
    lengths: I64,
    world_size: int,
    *,
    size_px: int,
    label_entries: int,
    prefetch_batches: int,
    prefetch_bytes: int,
    memory: Literal["none", "encoded", "decoded"],
    images: int | None = None,
) -> Footprint:
    """What a loader takes on the worker with most lanes.

    Args:
        lengths: bytes of each row group [R].
        label_entries: numbers in all labels of a sample together.
        size_px, prefetch_batches, prefetch_bytes, memory: of the loader.
        images: rows on storage; None where the order repeats none.
    """
    lanes = -(-order.lanes // world_size)
    each, whole = _blocks(order, lengths), int(lengths.sum())
    block = int(each.max())
    batch = lanes * (order.global_batch // order.lanes) * 3 * size_px**2
    ahead, reading = split_prefetch(prefetch_bytes, prefetch_batches, batch)
    held = max(int(each[rank::world_size].sum()) for rank in range(world_size))
    blocks, reading, kept = min(held, whole), min(max(reading, block), whole), 0
    if memory == "encoded":
        blocks, reading, kept = 0, 0, whole  # what is read is kept, and nothing else is held
    elif memory == "decoded":
        kept = decoded_bytes(int(order.rows.sum()) if images is None else images, size_px, label_entries)
    return Footprint(blocks, ahead * batch + reading, 2 * batch, kept)


def evaluation_bytes(
    order: AnyOrder,
    lengths: I64,
    world_size: int,
    *,
    size_px: int,
    split_bytes: int,
    prefetch_batches: int,
    prefetch_bytes: int,
) -> int:
    """What a loader takes that evaluates on a split, about: its row groups are taken to be no larger than `lengths`.

    Args:
        order, lengths: of the training split, whose batches and lanes an evaluation has as well.
        size_px: side of the images of an evaluation.
        split_bytes: of the split, on storage.
    """
    lanes = -(-order.lanes // world_size)
    block = EVALUATION_ROW_GROUPS * int(lengths.max())
    batch = lanes * (order.global_batch // order.lanes) * 3 * size_px**2
    ahead, reading = split_prefetch(prefetch_bytes, prefetch_batches, batch)
    return min(lanes * block, split_bytes) + (ahead + 2) * batch + min(max(reading, block), split_bytes)


def _blocks(order: AnyOrder, lengths: I64) -> I64:
    """Bytes of the largest block that each lane can have: int64 [L]."""
    first = np.cumsum([len(part.rows) for part in order.parts])[:-1]
    sizes: list[int] = []
    for part, its in zip(order.parts, np.split(lengths, first), strict=True):
        sizes += [int(np.sort(its)[::-1][: block_row_groups(part)].sum())] * part.lanes
    return np.array(sizes, np.int64)


def block_row_groups(order: Order) -> int:
    """The most row groups that a block can have, in any epoch."""
    smallest_first = np.cumsum(np.sort(order.rows))
    within = int(np.searchsorted(smallest_first, int(order.edges[1]), side="right"))
    in_lane = within + 2  # both ends of a lane may lie within a row group
    return min(order.block_row_groups or in_lane, in_lane)


def split_prefetch(budget_bytes: int, most_batches: int, batch_bytes: int) -> tuple[int, int]:
    """Batches made ahead, at least one and of half the budget at most; and the bytes left for reading ahead."""
    batches = max(min(most_batches, budget_bytes // 2 // batch_bytes), 1)
    return batches, max(budget_bytes - batches * batch_bytes, 0)
