"""A batch: what one rank trains on or evaluates at a step, with what became of each sample and what making it took."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mtl.data.columns import LabelArray
from mtl.data.keyed import hashes, key
from mtl.data.transforms import U8

OK, QUARANTINED, EMPTY = 0, 1, 2
"""Status of a slot: a sample, a sample whose image can not be decoded (blank, labels masked), or padding."""


@dataclass(frozen=True)
class Bad:
    """A quarantined sample."""

    position: int
    shard: str
    row: int
    reason: str


@dataclass(frozen=True)
class Cost:
    """What making a batch took, in seconds summed over threads.

    Attributes:
        reading_s: decoding threads that waited for row groups.
        making_s: decoding threads at work; `cpu_s` of it on a CPU.
        fetching_s, fetched_bytes: reads that ended since the batch before.
    """

    reading_s: float = 0.0
    making_s: float = 0.0
    cpu_s: float = 0.0
    fetching_s: float = 0.0
    fetched_bytes: int = 0


@dataclass
class Batch:
    """One rank's part of a global batch, n slots.

    images uint8 [n, size, size, 3]; labels[task] int64 [n] (-1 missing) or float32 [n] (NaN missing), or
    [n, width]; colour float32 [n, 3]; status uint8 [n]; ledger: sum of the samples' hashes modulo 2^64; positions
    int64 [n] in the order of the epoch, -1 where a slot is empty.
    """

    step: int
    epoch: int
    images: U8
    labels: dict[str, LabelArray]
    colour: npt.NDArray[np.float32]
    status: npt.NDArray[np.uint8]
    ledger: int
    bad: list[Bad]
    positions: npt.NDArray[np.int64]
    cost: Cost = field(default_factory=Cost)


def ledger(
    epoch: int, positions: npt.NDArray[np.int64], ids: npt.NDArray[np.uint64], status: npt.NDArray[np.uint8]
) -> int:
    """Sum modulo 2^64 of keyed hashes of (epoch, position, image id, status): equal for any split over workers."""
    once = hashes(key("ledger", epoch), positions.astype(np.uint64) * np.uint64(4) + status.astype(np.uint64))
    with np.errstate(over="ignore"):
        return int(hashes(key("ledger"), once ^ ids).sum(dtype=np.uint64))
