"""What a restart of the workers costs: the steps since the last commit, in seconds, and why they are lost."""

import time
from collections.abc import Callable, Sequence
from typing import Any, final

from mtl.on_ray.pulse import Sighting


@final
class Losses:
    """Kept by the driver while it listens.

    Args:
        clock: seconds, never going backwards.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._safe_s: float | None = None  # what was trained before is committed, or was before these workers came
        self._moved_s = 0.0

    def committed(self) -> None:
        """A commit has been made."""
        self._safe_s = self._clock()

    def seen(self, workers: Sequence[Sighting]) -> None:
        """Take note of how far the workers are."""
        stepping = bool(workers) and all(one.pulse.steps > 2 for one in workers)
        if stepping:
            self._moved_s = self._clock() - max(one.still_s for one in workers)
            self._safe_s = self._moved_s if self._safe_s is None else self._safe_s

    def end(self, cause: str) -> dict[str, Any]:
        """The workers are gone; why, and the seconds that those after them replay."""
        replayed_s = 0.0 if self._safe_s is None else max(self._moved_s - self._safe_s, 0.0)
        self._safe_s, self._moved_s = None, 0.0
        return {"cause": cause, "replayed_s": round(replayed_s, 1)}
