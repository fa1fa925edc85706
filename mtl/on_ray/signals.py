"""What a driver does when it is told to stop."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import final


@final
class Signals:
    """Entered, whether SIGTERM or SIGINT came; a second SIGINT interrupts at once.

    Args:
        say: told, once, that the first has come.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._asked = say, threading.Event()

    def __enter__(self) -> Callable[[], bool]:
        self._previous = {n: signal.signal(n, self._ask) for n in (signal.SIGTERM, signal.SIGINT)}
        return self._asked.is_set

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self._asked.is_set():
            self._asked.set()
            self._say("stopping: the workers commit first (Ctrl-C again to leave at once)")
