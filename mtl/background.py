"""Work that training does not wait for: commits, one after the other, in a thread of their own."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, final

from mtl.errors import StoreError, may_pass

Event = dict[str, Any]

LAST_S = 60.0
"""How long work under way is waited for when something else fails."""

AWAY_S, FIRST_PAUSE_S, LONGEST_PAUSE_S = 120.0, 1.0, 8.0
"""For how long storage may be away, and the pauses between tries, which double. Reads wait as long: store/patience."""


@dataclass(frozen=True)
class _Work:
    run: Callable[[], list[Event]]
    kept: bool


@final
class Background:
    """Runs what it is given in order. What has not begun gives way to what comes later, so at most one waits.

    Storage that fails may be back soon, and a restart of the workers would not bring it back sooner: work that meets it
    is done again, which must be harmless.

    Leaving its context waits for all work and raises what it raised; where something else has failed, it waits a while
    and adds nothing.

    Args:
        threaded: whether there is a thread; without one, work is done where it is given.
        tell: receives the events that a work returns, in the thread that asks for it.
    """

    def __init__(self, tell: Callable[[Event], None], *, threaded: bool) -> None:
        self._tell, self._threaded = tell, threaded
        self._waiting: deque[_Work] = deque()
        self._events: deque[Event] = deque()
        self._changed = threading.Condition()
        self._busy = False
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def give(self, run: Callable[[], list[Event]], *, kept: bool = False) -> None:
        """Have `run` done; does not wait for it, unless one that is `kept` waits already.

        Args:
            kept: it never gives way.

        Raises:
            what an earlier work raised.
        """
        if not self._threaded:
            self._events += self._insist(run)
            self.watch()
            return
        self.watch()
        with self._changed:
            while self._waiting and not self._waiting[0].kept:
                self._waiting.popleft()
            while self._waiting and self._error is None:
                self._changed.wait(timeout=0.1)
            self._waiting.append(_Work(run, kept))
            if self._thread is None:
                # A daemon: a process that has nothing else to do must not be held by storage that hangs.
                self._thread = threading.Thread(target=self._work, name="mtl-commit", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        self.watch()

    def watch(self) -> None:
        """Tell what was done since the last call.

        Raises:
            what a work raised; nothing is done after it.
        """
        while self._events:
            self._tell(self._events.popleft())
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._settle(math.inf)
            self.watch()
        elif issubclass(kind, Exception):  # an interrupt leaves at once
            self._settle(LAST_S)

    def _settle(self, limit_s: float) -> None:
        until_s = time.monotonic() + limit_s
        with self._changed:
            while (self._busy or self._waiting) and self._error is None and time.monotonic() < until_s:
                self._changed.wait(timeout=0.1)  # in pieces, so that signals are heard

    def _insist(self, run: Callable[[], list[Event]]) -> list[Event]:
        """What `run` returns, once storage that is away has come back."""
        until_s, pause_s = time.monotonic() + AWAY_S, FIRST_PAUSE_S
        while True:
            try:
                return run()
            except StoreError as error:
                if not may_pass(error) or time.monotonic() + pause_s > until_s:
                    raise
                if pause_s == FIRST_PAUSE_S:
                    self._events.append({"kind": "note", "text": f"a commit waits for storage: {error.what}"})
                    if not self._threaded:
                        self.watch()
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                while not self._waiting:
                    self._changed.wait()
                work, self._busy = self._waiting.popleft(), True
                self._changed.notify_all()
            try:
                self._events += self._insist(work.run)
            except BaseException as error:
                with self._changed:
                    self._error, self._busy = error, False
                    self._waiting.clear()
                    self._changed.notify_all()
                return
