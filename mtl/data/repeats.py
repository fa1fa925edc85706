"""Rows of rare classes more than once an epoch: repeat-factor sampling, resolved once for a run.

Gupta, Dollar and Girshick, LVIS (CVPR 2019), repeat factor sampling: a class c of a share f(c) of the rows has the
factor r(c) = max(1, sqrt(t / f(c))), and a row the largest factor of its classes. Here the root may be another power,
and t is, unless it is given, the share of the most frequent class: a class with n rows then comes in proportion to
n ^ (1 - power). The paper draws the fraction of a factor anew in every epoch; here it is drawn once, by (seed, row), so
that an epoch has a fixed number of rows, some of which are copies.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self, final

import numpy as np
import numpy.typing as npt
import xxhash

from mtl.data.keyed import key, uniforms

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]


def class_factors(counts: Sequence[int] | I64, labelled: int, power: float, threshold: float | None, cap: int) -> F64:
    """How often a row of each class is to come in an epoch: float64 [C] in [1, cap], 1 where there is none.

    Args:
        counts: rows of each class.
        labelled: rows with a label.
        threshold: the share t of them; None takes that of the most frequent class.
    """
    rows = np.array(counts, np.float64)
    most = rows.max(initial=0.0) if threshold is None else threshold * labelled
    return np.where(rows > 0, np.clip((most / np.maximum(rows, 1.0)) ** power, 1.0, cap), 1.0)


def class_counts(labels: I64, classes: int) -> I64:
    """How many of n rows have each class: int64 [C], more if an id is out of range.

    Args:
        labels: as in `row_factors`.
    """
    return (labels == 1).sum(axis=0) if labels.ndim == 2 else np.bincount(labels[labels >= 0], minlength=classes)


def row_factors(labels: I64, factors: F64) -> F64:
    """The largest factor of the classes of each of n rows, 1 for a row that has none: float64 [n].

    Args:
        labels: class ids [n], -1 for a missing label; or [n, C], 1 for the classes that a row has.
        factors: of each class [C].
    """
    if labels.ndim == 2:
        return np.where(labels == 1, factors, 1.0).max(axis=1, initial=1.0)
    return np.append(factors, 1.0)[labels]  # -1 is the last


def resolved(factors: F64, first_row: int, seed: int) -> U8:
    """Each of n factors as a whole number of times, one of its two neighbours by chance: uint8 [n].

    Args:
        first_row: number of the first of these consecutive rows in its split.
    """
    chance = uniforms(key("repeats", seed), first_row + np.arange(len(factors)), 1)[:, 0]
    whole = np.floor(factors)
    return (whole + (chance < factors - whole)).astype(np.uint8)


def edges(sizes: I64 | U8) -> I64:
    """Where each of n consecutive parts begins, and the last one ends: int64 [n + 1]."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])


@final
@dataclass(frozen=True)
class Repeats:
    """How often each of N rows on storage comes in an epoch.

    `times` uint8 [N], at least 1; row group g is the rows from `first[g]` to `first[g + 1]`, int64 [R + 1]. In what is
    read, the copies of a row follow one another.
    """

    times: U8
    first: I64

    @classmethod
    def of(cls, times: U8, rows: I64) -> Self:
        """Row groups of `rows` [R] rows on storage, which come `times` [N]."""
        return cls(times, edges(rows))

    @property
    def rows(self) -> I64:
        """Rows of each row group with all copies: int64 [R]."""
        return np.diff(edges(self.times)[self.first])

    def on_storage(self, number: int) -> I64:
        """For each row of row group `number` as it is read, which of its rows on storage that is: int64 [n]."""
        times = self.times[self.first[number] : self.first[number + 1]]
        return np.repeat(np.arange(len(times)), times)

    @cached_property
    def numbers(self) -> I64:
        """For each row of the split as it is read, its number among the N: int64 [n]."""
        return np.repeat(np.arange(len(self.times)), self.times)

    @property
    def digest(self) -> str:
        """A hash of all of them."""
        return xxhash.xxh3_128_hexdigest(self.times.tobytes())
