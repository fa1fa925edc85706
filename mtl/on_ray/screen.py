"""A job's log on a screen: lines that only say how far it is replace each other at the bottom of a terminal."""

import re
import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO, final

from mtl.console import clock as minutes

_PROGRESS = re.compile(r"(^|  )(\w+ )?[\d,.]+/[\d,.]+( |$)")  # "0:12  step 40/1,200  epoch ...", "shards  3/8 shards"
_UNPRINTABLE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]")


@final
class Screen:
    """Shows a log as it arrives, in any pieces. A stream that is no terminal gets every line, unchanged.

    Args:
        stream: where to; standard output unless given.
        every_s: how often a stream that is no terminal hears that something is still waited for.
    """

    def __init__(
        self, stream: TextIO | None = None, *, every_s: float = 15.0, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._live = self._stream.isatty()
        self._every_s, self._now = every_s, now
        self._began_s = self._said_s = now()
        self._rest, self._bottom = "", ""

    def feed(self, text: str) -> None:
        """Show more of the log; a line is shown once it is complete."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if self._live and _PROGRESS.search(line):
                self._bottom = line
            else:
                self.say(_UNPRINTABLE.sub("", line))
        self.tick()

    def say(self, line: str) -> None:
        """Show a line that stays."""
        self._write(f"{line}\n")
        self.tick()

    def wait(self, what: str) -> None:
        """Say what is waited for: at once where that is new, and now and then."""
        if self._live:
            self._bottom = what
            self.tick()
        elif self._bottom != what or self._now() - self._said_s >= self._every_s:
            self._bottom, self._said_s = what, self._now()
            self._write(f"{what} ({minutes(self._now() - self._began_s)})\n")

    def tick(self) -> None:
        """Draw the bottom line of a terminal anew, with the time since the start."""
        if self._live and self._bottom:
            width = shutil.get_terminal_size().columns
            line = f"[{minutes(self._now() - self._began_s)}] {_UNPRINTABLE.sub('', self._bottom)}"
            self._write(line[: width - 1])

    def close(self) -> None:
        """Show what is incomplete, and leave the bottom line as it is."""
        if self._rest:
            self.feed("\n")
        if self._live and self._bottom:
            self._stream.write("\n")
        self._bottom = ""

    def _write(self, text: str) -> None:
        self._stream.write(f"\r\x1b[K{text}" if self._live else text)
        self._stream.flush()
