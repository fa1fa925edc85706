"""Small data sets in memory, from epoch to epoch: their row groups as they lie on storage, or their decoded samples.

Both are filled as training goes, so nothing waits for them at the start, and neither changes any result.
"""

import threading
from typing import Protocol, final

import numpy as np
import numpy.typing as npt

from mtl.data.columns import LabelArray
from mtl.data.manifest import Index
from mtl.data.order import Rows
from mtl.data.reader import RowGroup

I64 = npt.NDArray[np.int64]


class Source(Protocol):
    """What reads row groups of one split: a `Reader`, `Joined` over several, or `Encoded` over one of these."""

    @property
    def index(self) -> Index:
        """The split's index."""
        ...

    def read(self, number: int) -> RowGroup:
        """Row group `number`. Thread-safe."""
        ...


@final
class Encoded:
    """A source that keeps every row group that was read. Thread-safe."""

    def __init__(self, source: Source) -> None:
        self._source, self.index = source, source.index
        self._kept: dict[int, RowGroup] = {}
        self._lock = threading.Lock()

    def read(self, number: int) -> RowGroup:
        """Row group `number`, from storage the first time."""
        with self._lock:
            group = self._kept.get(number)
        if group is None:
            group = self._source.read(number)
            with self._lock:
                self._kept[number] = group
        return group


@final
class Decoded:
    """The samples of a split of N rows as a view renders them before anything is random, each kept when it first comes.

    Rows are numbered as on storage; `known` bool [N] says which are here. The arrays of the others hold nothing:
    pixels uint8 [N, size, size, 3]; ids uint64 [N]; labels[task] [N, ...]; `refused` says why images were not decoded.

    Args:
        index: of the split; all copies of a row that it repeats are one here.
        size_px: side of the rendered samples.
        labels: arrays of N missing labels, by task.
    """

    def __init__(self, index: Index, size_px: int, labels: dict[str, LabelArray]) -> None:
        n = index.images
        self._starts = np.cumsum(index.rows) - index.rows
        self._repeats = index.repeats
        self.known = np.zeros(n, np.bool_)
        self.pixels = np.empty((n, size_px, size_px, 3), np.uint8)  # untouched pages take no memory
        self.ids = np.empty(n, np.uint64)
        self.labels = labels
        self.refused: dict[int, str] = {}

    def number(self, rows: Rows) -> I64:
        """The numbers [n] of rows."""
        read = self._starts[rows.group] + rows.row
        return read if self._repeats is None else self._repeats.numbers[read]

    def unknown(self, rows: Rows) -> npt.NDArray[np.bool_]:
        """Which of some rows [n] are not here yet."""
        return ~self.known[self.number(rows)]

    def recall(
        self,
        numbers: I64,
        pixels: npt.NDArray[np.uint8],
        ids: npt.NDArray[np.uint64],
        labels: dict[str, LabelArray],
    ) -> tuple[I64, dict[int, str]]:
        """Copy what is here of samples `numbers` [n] to their places; returns the places of the others, and reasons."""
        known = self.known[numbers]
        here, others = np.flatnonzero(known), np.flatnonzero(~known)
        if len(others) == 0:
            np.take(self.pixels, numbers, axis=0, out=pixels, mode="clip")  # "raise" would copy twice
        else:
            pixels[here] = self.pixels[numbers[here]]
        ids[here] = self.ids[numbers[here]]
        for task, values in labels.items():
            values[here] = self.labels[task][numbers[here]]
        if not self.refused:
            return others, {}
        return others, {i: self.refused[n] for i, n in enumerate(numbers.tolist()) if known[i] and n in self.refused}

    def keep(
        self,
        numbers: I64,
        pixels: npt.NDArray[np.uint8],
        ids: npt.NDArray[np.uint64],
        labels: dict[str, LabelArray],
        refused: dict[int, str],
    ) -> None:
        """Keep samples `numbers` [n]. Two threads that keep the same sample write the same bytes."""
        self.pixels[numbers], self.ids[numbers] = pixels, ids
        for task, values in labels.items():
            self.labels[task][numbers] = values
        self.refused |= refused
        self.known[numbers] = True  # last: from here on others read what stands above


def decoded_bytes(rows: int, size_px: int, label_entries: int) -> int:
    """What `Decoded` takes for a whole split."""
    return rows * (3 * size_px**2 + 8 * label_entries + 9)
