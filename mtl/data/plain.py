"""Where the values of a binary column lie within its pages, so that they can be used where they were read to.

pyarrow decodes a column into memory of its own; for images, nearly all of a row group, that is a second copy of
everything. As this project writes them, their pages are uncompressed, plain and without nulls, and the values stand one
behind the other: https://parquet.apache.org/docs/file-format/data-pages/ and, for page headers, Thrift's compact
protocol. Whatever is not so is left to pyarrow.
"""

import struct

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]

_DATA_PAGE, _PLAIN, _RLE = 0, 0, 3
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _BINARY, _STRUCT = 1, 2, 3, 4, 5, 6, 8, 12
_LENGTH = struct.Struct("<I")


def locate(chunk: memoryview, n: int) -> tuple[I64, I64] | None:
    """First byte and length of each of the `n` values of an optional binary column, int64 [n] each.

    Args:
        chunk: all pages of the column in one row group.

    Returns:
        None if the pages are not plain, not of version 1, or have nulls.
    """
    starts: list[int] = []
    lengths: list[int] = []
    at = 0
    try:
        while len(starts) < n:
            header, at = _fields(chunk, at)
            size, page = header[3], header[5]
            if header[1] != _DATA_PAGE or header[2] != size or not isinstance(size, int) or not isinstance(page, dict):
                return None
            values, end = page[1], at + size
            if (page[2], page[3]) != (_PLAIN, _RLE) or not isinstance(values, int) or len(starts) + values > n:
                return None
            (levels,) = _LENGTH.unpack_from(chunk, at)
            at += _LENGTH.size + levels
            if at > end or not _all_present(chunk[at - levels : at], values):
                return None
            for _ in range(values):
                (length,) = _LENGTH.unpack_from(chunk, at)
                starts.append(at + _LENGTH.size)
                lengths.append(length)
                at += _LENGTH.size + length
            if at != end:
                return None
    except (IndexError, KeyError, ValueError, struct.error):
        return None
    if at != len(chunk):
        return None
    return np.array(starts, np.int64), np.array(lengths, np.int64)


Fields = dict[int, "int | Fields | None"]


def _fields(data: memoryview, at: int) -> tuple[Fields, int]:
    """A struct by field number, whole numbers and structs alone with their values, and where it ends.

    Raises:
        ValueError, IndexError: it has something that page headers have not, or does not end.
    """
    found: Fields = {}
    number = 0
    while kind_and_step := data[at]:
        at += 1
        kind, step = kind_and_step & 15, kind_and_step >> 4
        if step:
            number += step
        else:
            number, at = _whole(data, at)
        found[number] = None
        if kind in (_I16, _I32, _I64):
            found[number], at = _whole(data, at)
        elif kind == _STRUCT:
            found[number], at = _fields(data, at)
        elif kind == _BINARY:
            length, at = _varint(data, at)
            at += length
        elif kind == _BYTE:
            at += 1
        elif kind not in (_TRUE, _FALSE):
            raise ValueError(f"a field of kind {kind}")
    return found, at + 1


def _whole(data: memoryview, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return value >> 1 ^ -(value & 1), at  # zigzag


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while (byte := data[at]) & 128:
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
    return value | byte << shift, at + 1


def _all_present(levels: memoryview, n: int) -> bool:
    """Whether the first `n` definition levels, of one bit each, are all 1."""
    at = seen = 0
    while seen < n:
        header, at = _varint(levels, at)
        if header & 1:  # groups of eight, packed
            count = min((header >> 1) * 8, n - seen)
            bits = np.unpackbits(np.frombuffer(levels[at : at + (header >> 1)], np.uint8), bitorder="little")
            if not count or len(bits) < count or not bits[:count].all():
                return False
            at += header >> 1
        else:
            count = header >> 1
            if not count or levels[at] != 1:
                return False
            at += 1
        seen += count
    return True
