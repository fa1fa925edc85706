"""The time that a job may take."""

import time
from collections.abc import Callable
from typing import final


@final
class Limit:
    """Asked, whether the hours that a job may take are over. They begin with the construction.

    Args:
        hours: None allows any.
        say: told once, when they are over.
        clock: seconds, never going backwards.
    """

    def __init__(
        self, hours: float | None, say: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._hours, self._say, self._clock = hours, say, clock
        self._began_s, self._over = clock(), False

    def __call__(self) -> bool:
        if self._hours is not None and not self._over and self._clock() - self._began_s >= self._hours * 3600:
            self._over = True
            self._say(f"the time of this job is over (max_hours {self._hours:g}): it commits and stops")
        return self._over
