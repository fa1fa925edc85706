"""A tracker as users write them, and a reader of event files."""

import struct
from typing import Any, ClassVar

import pytest

from mtl.tracking import Row, Tracked

event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
record_writer = pytest.importorskip("tensorboardX.record_writer")


def read_events(data: bytes) -> list[Any]:
    """The events of a file, every checksum verified."""
    found: list[Any] = []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        sums = struct.unpack("<I", data[8:12])[0], struct.unpack("<I", data[12 + length : 16 + length])[0]
        body = data[12 : 12 + length]
        assert sums == (record_writer.masked_crc32c(data[:8]), record_writer.masked_crc32c(body))
        found.append(event_pb2.Event.FromString(body))
        data = data[16 + length :]
    return found


class Recorder:
    """A user's tracker, which fails where it is told to."""

    made: ClassVar[list["Recorder"]] = []

    def __init__(self, run: Tracked, *, fails: str = "") -> None:
        self.run, self.fails, self.calls = run, fails, list[str]()
        Recorder.made.append(self)
        self._call("init")

    def log(self, step: int, row: Row) -> None:
        self._call(f"log {step}")

    def flush(self) -> None:
        self._call("flush")

    def close(self) -> None:
        self._call("close")

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.fails and name.startswith(self.fails):
            raise OSError("the server is away")
