"""How far a long piece of work is: a bar for a person at a terminal, one line every few seconds for a log."""

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO, final

import rich.progress
from rich.console import Console


@final
class Progress:
    """Shows `done` of `total` units while it is entered. `update` may be called from any thread.

    The rate is measured from the first update on: a caller that resumes reports what was there already first.

    Args:
        what: name of the work, one word.
        total: how many units there are, positive.
        unit: what is counted, in the plural.
        stream: where to; standard output unless given. Decides between bar and lines.
        every_s: least time between two lines.
        clock: seconds, never going backwards.
    """

    def __init__(
        self,
        what: str,
        total: float,
        unit: str,
        *,
        stream: TextIO | None = None,
        every_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._stream = sys.stdout if stream is None else stream
        self._every_s, self._clock = every_s, clock
        self._lock = threading.Lock()
        self._done, self._note = 0.0, ""
        self._first: tuple[float, float] | None = None  # amount and time of the first update
        self._bar: tuple[rich.progress.Progress, rich.progress.TaskID] | None = None

    def __enter__(self) -> Self:
        self._entered_s = self._shown_s = self._clock()
        if self._stream.isatty():
            bar = rich.progress.Progress(
                rich.progress.BarColumn(bar_width=24),
                rich.progress.TextColumn("{task.description}", markup=False),
                console=Console(file=self._stream),
            )
            self._bar = bar, bar.add_task(self._text(), total=self._total)
            bar.start()
        else:
            self._line()
        return self

    def update(self, done: float, note: str = "") -> None:
        """Say that `done` units are complete in all; an amount below the last one is ignored, a note is not."""
        with self._lock:
            self._done, self._note = max(done, self._done), note
            now = self._clock()
            if self._first is None:
                self._first = self._done, now
            if self._bar:
                bar, task = self._bar
                bar.update(task, completed=self._done, description=self._text())
            elif now - self._shown_s >= self._every_s:
                self._line()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            if self._bar:
                self._bar[0].stop()
            else:
                self._line(f"after {_duration(self._clock() - self._entered_s)}")

    def _line(self, when: str = "") -> None:
        self._shown_s = self._clock()
        self._stream.write(self._text(when) + "\n")
        self._stream.flush()

    def _text(self, when: str = "") -> str:
        parts = [
            self._what,
            f"{_number(self._done)}/{_number(self._total)} {self._unit}",
            f"{100 * self._done / self._total:.0f} %",
        ]
        since, at = self._first or (0.0, self._entered_s)
        elapsed_s = self._clock() - at
        if self._done > since and elapsed_s > 0:
            rate = (self._done - since) / elapsed_s
            parts += [f"{_number(rate)} {self._unit}/s", when or f"{_duration((self._total - self._done) / rate)} left"]
        elif when:
            parts.append(when)
        return "  ".join([*parts, self._note] if self._note else parts)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.2g}"


def _duration(seconds: float) -> str:
    whole = max(0, round(seconds))
    if whole < 100:
        return f"{whole} s"
    minutes = round(whole / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
