"""TensorBoard's event files, byte by byte: records of TFRecord, each an `Event` of tensorflow/core/util/event.proto.

Four of its fields are all that scalars need, and the packages that write them cost seconds at every start.
"""

import math
import struct
from collections.abc import Mapping

# Fields of the messages, as protobuf tags: (number << 3) | wire type.
_WALL_TIME, _STEP, _VERSION, _SUMMARY, _SESSION = 0x09, 0x10, 0x1A, 0x2A, 0x3A
_VALUE, _TAG, _SIMPLE_VALUE, _STATUS, _START = 0x0A, 0x0A, 0x15, 0x08, 1


def header() -> bytes:
    """The record that a file begins with."""
    return _record(_double(_WALL_TIME, 0.0) + _bytes(_VERSION, b"brain.Event:2"))


def restart(wall_time_s: float, step: int) -> bytes:
    """The record after which readers forget what was written of `step` and later steps."""
    return _event(wall_time_s, step, _bytes(_SESSION, bytes((_STATUS, _START))))


def summary(wall_time_s: float, step: int, values: Mapping[str, float]) -> bytes:
    """The record of some scalars, by name."""
    parts = (
        _bytes(_VALUE, _bytes(_TAG, name.encode()) + bytes((_SIMPLE_VALUE,)) + _float(value))
        for name, value in values.items()
    )
    return _event(wall_time_s, step, _bytes(_SUMMARY, b"".join(parts)))


def _event(wall_time_s: float, step: int, what: bytes) -> bytes:
    return _record(_double(_WALL_TIME, wall_time_s) + bytes((_STEP,)) + _varint(step) + what)


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", _masked(length)) + data + struct.pack("<I", _masked(data))


def _double(tag: int, value: float) -> bytes:
    return bytes((tag,)) + struct.pack("<d", value)


def _bytes(tag: int, data: bytes) -> bytes:
    return bytes((tag,)) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)


def _float(value: float) -> bytes:
    try:
        return struct.pack("<f", value)
    except OverflowError:
        return struct.pack("<f", math.copysign(math.inf, value))


def _masked(data: bytes) -> int:
    """The checksum of TFRecord: CRC-32C, rotated, plus a constant."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _crc(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


_CRC = tuple(map(_crc, range(256)))
