"""What a task asks of the data."""

from dataclasses import dataclass, replace
from typing import Literal, Self, final

import numpy as np
import numpy.typing as npt

from mtl.data.columns import LabelArray


@final
@dataclass(frozen=True)
class Target:
    """What a task asks of the data, and what a mirror does to it.

    Attributes:
        column: the label column; where several, separated by commas, are the entries of one label, all of them.
        width: entries of a label; None where it is a single value.
        components: the entries that a mirror negates; all if empty.
    """

    task: str
    column: str
    integer: bool
    negated_by_flip: Literal["no", "angle", "number"] = "no"
    width: int | None = None
    components: tuple[int, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns to read."""
        return tuple(self.column.split(","))

    def of_column(self) -> Self:
        """What each of the columns holds: where they are several, a single value."""
        return self if len(self.columns) == 1 else replace(self, width=None)

    def empty(self, n: int) -> LabelArray:
        """n labels that are all missing."""
        shape = (n,) if self.width is None else (n, self.width)
        return np.full(shape, -1, np.int64) if self.integer else np.full(shape, np.nan, np.float32)

    def places(self, labels: LabelArray) -> list[tuple[LabelArray, str]]:
        """Which part of this task's `labels` each column fills."""
        several = len(self.columns) > 1
        return [(labels[:, i] if several else labels, name) for i, name in enumerate(self.columns)]

    def mirror(self, labels: LabelArray, flip: npt.NDArray[np.bool_]) -> LabelArray:
        """`labels` of samples of which `flip` says whether they are mirrored."""
        if self.width is not None:
            negated = np.isin(np.arange(self.width), self.components or range(self.width))
            return np.where(flip[:, None] & negated, -labels, labels)
        return np.where(flip, np.mod(-labels, 2 * np.pi) if self.negated_by_flip == "angle" else -labels, labels)
