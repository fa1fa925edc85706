"""Memory that goes back to the system in part."""

import mmap
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl.data.pages import give_back

PAGE = mmap.PAGESIZE


def private(size: int) -> np.ndarray:
    """Memory as allocators have it, beginning with a page."""
    return np.frombuffer(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)


@given(st.integers(0, 8 * PAGE), st.integers(0, 8 * PAGE))
def test_only_whole_pages_inside_are_dropped(start: int, stop: int) -> None:
    start, stop = sorted((start, stop))
    data = private(8 * PAGE)
    data[:] = 7
    give_back(data.ctypes.data + start, stop - start)
    assert (data[:start] == 7).all()
    assert (data[stop:] == 7).all()
    first, last = -(-start // PAGE) * PAGE, stop // PAGE * PAGE
    assert (data[first:last] == (0 if sys.platform == "linux" else 7)).all()
    data[:] = 9  # it stays its owner's
    assert (data == 9).all()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and only Linux promises to drop pages")
def test_what_is_dropped_takes_no_memory() -> None:
    data = private(64 * 2**20)
    data[:] = 1
    before = resident_bytes()
    give_back(data.ctypes.data, len(data))
    assert before - resident_bytes() > len(data) // 2


def resident_bytes() -> int:
    with open("/proc/self/statm", encoding="utf-8") as file:
        return int(file.read().split()[1]) * PAGE
