"""Randomness as a pure function of a key: the same on every machine, and in every numpy version.

A library's permutation or generator stream may change between releases; these few integer operations may not, so the
order of samples and the augmentation of each are fixed by this file alone (golden vectors in the tests).
"""

import hashlib
from functools import lru_cache

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_CHUNK = 2**15  # numbers hashed at a stretch: they stay in the processor's cache


def key(*parts: int | str) -> int:
    """A 64-bit key of `parts`, in [0, 2^64)."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def mix(values: U64) -> U64:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014): a bijection of 64-bit integers that avalanches."""
    x = values.copy()
    _mix(x, np.empty_like(x))
    return x


def _mix(x: U64, scratch: U64) -> None:
    """`mix` of `x` in place, without memory of its own."""
    x += _GOLDEN  # arrays, unlike numpy's scalars, wrap around without a warning
    x ^= np.right_shift(x, np.uint64(30), out=scratch)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= np.right_shift(x, np.uint64(27), out=scratch)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= np.right_shift(x, np.uint64(31), out=scratch)


def hashes(seed: int, values: U64) -> U64:
    """Keyed hashes of `values` [n]: mixed before and after the key, so that keys do not merely shift the stream."""
    return mix(mix(values) ^ _mixed_key(seed))


def permutation(seed: int, n: int) -> npt.NDArray[np.int64]:
    """A permutation of range(n): the order of keyed hashes (a bijection of distinct inputs, so there are no ties).

    Numbers are sorted with the high bits of their hash in front, in one array: several times faster than an argsort.
    The few whose high bits are equal are then put in order by the whole hash.
    """
    bits = np.uint64(max(n - 1, 0).bit_length())
    low = (np.uint64(1) << bits) - np.uint64(1)
    sorted_, scratch = np.empty(n, np.uint64), np.empty(min(n, _CHUNK), np.uint64)
    for start in range(0, n, _CHUNK):
        numbers = np.arange(start, min(start + _CHUNK, n), dtype=np.uint64)
        here, its_scratch = sorted_[start : start + len(numbers)], scratch[: len(numbers)]
        here[:] = numbers  # then as in `hashes`
        _mix(here, its_scratch)
        here ^= _mixed_key(seed)
        _mix(here, its_scratch)
        here &= ~low
        here |= numbers
    sorted_.sort()
    same: list[int] = []
    for start in range(0, n, _CHUNK):
        high = sorted_[start : start + _CHUNK + 1] >> bits
        same += (start + np.flatnonzero(high[1:] == high[:-1])).tolist()
    sorted_ &= low
    if same:
        tied = np.union1d(same, np.array(same) + 1)
        sorted_[tied] = sorted_[tied][np.argsort(hashes(seed, sorted_[tied]))]
    return sorted_.view(np.int64)


def uniforms(seed: int, positions: npt.NDArray[np.int64], columns: int) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1) keyed by (seed, position, column): float64 [n, columns], 53 random bits each."""
    rows = hashes(seed, positions.astype(np.uint64))
    grid = mix(rows[:, None] ^ _mixed_columns(columns)[None, :])
    return (grid >> np.uint64(11)).astype(np.float64) * 2.0**-53


@lru_cache(maxsize=64)
def _mixed_key(seed: int) -> U64:
    return mix(np.array([seed], np.uint64))


@lru_cache(maxsize=8)
def _mixed_columns(columns: int) -> U64:
    return mix(np.arange(columns, dtype=np.uint64))
