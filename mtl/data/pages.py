"""Memory of which only a part is needed any longer: its whole pages go back to the system before the rest is freed.

The lanes of a worker are, on average, in the middle of their blocks, so this halves what blocks hold. It also leaves
nothing to the allocator's caches, in which freed row groups stay otherwise.
"""

import ctypes
import mmap
import sys
from functools import cache
from typing import Any


def give_back(address: int, size: int) -> None:
    """Drop what lies in the whole pages of [address, address + size): reading it afterwards gives zeros.

    The memory stays its owner's, to write to and to free. Does nothing on systems other than Linux.
    """
    first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    last = (address + size) // mmap.PAGESIZE * mmap.PAGESIZE
    if first < last and (madvise := _madvise()) is not None:
        madvise(first, last - first, mmap.MADV_DONTNEED)  # advice: if it fails, the pages stay


@cache
def _madvise() -> Any:
    """The system's madvise, or None where it does not promise to drop pages."""
    if sys.platform != "linux":
        return None
    # PyDLL keeps the interpreter's lock: a call takes microseconds, and waiting for the lock again may take thousands.
    function = ctypes.PyDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function
