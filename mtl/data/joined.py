"""Row groups of several data sets, numbered over all of them, those of the first one first."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import final

import numpy as np
import numpy.typing as npt

from mtl.data.columns import LabelArray
from mtl.data.manifest import Index
from mtl.data.reader import Reader, RowGroup
from mtl.data.repeats import Repeats


@final
class Joined:
    """A source over the readers of several data sets, at least one. Thread-safe.

    In `index` shards go by their whole address, so that messages tell data sets apart.

    Args:
        readers: each of the columns that its data set has.
        missing: by column that is wanted, makes n missing labels of it.
    """

    def __init__(self, readers: Sequence[Reader], missing: Mapping[str, Callable[[int], LabelArray]]) -> None:
        self._readers, self._missing = readers, missing
        self._first = np.cumsum([0, *(len(reader.index.rows) for reader in readers)])
        self.index = _concatenated(readers)

    def read(self, number: int) -> RowGroup:
        """Row group `number`, with missing labels where its data set lacks a column; errors as `Reader.read`."""
        source = int(np.searchsorted(self._first, number, side="right")) - 1
        group = self._readers[source].read(number - int(self._first[source]))
        absent = {name: make(len(group.ids)) for name, make in self._missing.items() if name not in group.labels}
        return replace(group, number=number, labels=group.labels | absent)


def _concatenated(readers: Sequence[Reader]) -> Index:
    indices = [reader.index for reader in readers]
    first_shard = np.cumsum([0, *(len(index.shard_path) for index in indices)]).tolist()

    def together(name: str) -> npt.NDArray[np.int64]:
        return np.concatenate([getattr(index, name) for index in indices])

    return Index(
        rows=together("rows"),
        shard=np.concatenate([index.shard + first for index, first in zip(indices, first_shard, strict=False)]),
        ordinal=together("ordinal"),
        offset=together("offset"),
        length=together("length"),
        checksum=np.concatenate([index.checksum for index in indices]),
        shard_path=tuple(f"{reader.uri}/{path}" for reader in readers for path in reader.index.shard_path),
        shard_bytes=together("shard_bytes"),
        footer_offset=together("footer_offset"),
        footer_length=together("footer_length"),
        repeats=_repeats(indices),
    )


def _repeats(indices: Sequence[Index]) -> Repeats | None:
    if all(index.repeats is None for index in indices):
        return None
    each = [index.repeats or Repeats.of(np.ones(index.images, np.uint8), index.rows) for index in indices]
    rows = np.concatenate([np.diff(its.first) for its in each])
    return Repeats.of(np.concatenate([its.times for its in each]), rows)
