"""How much of a run's time was useful, and what its restarts cost, from what each attempt has left in attempts/."""

import json
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, final

from mtl.store import Store

Account = dict[str, Any]
"""attempts/N.json. Of it counts here:

    job, job_began    id of the driver's claim to the run, and since when
    until             when the attempt last committed or ended
    began, workers    of the attempt
    scale             what its images/s were measured against (mtl/accounting.py)
    useful_s          seconds in steps that are in the commit of then, of all attempts
    after             cause and replayed_s of the restart before this attempt, where there was one
"""


def now() -> str:
    """UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@final
class Meter:
    """Seconds spent in steps, with what they wait for; it begins paused.

    Args:
        useful_s: of earlier attempts, from the commit that is resumed.
        clock: seconds, never going backwards.
    """

    def __init__(self, useful_s: float = 0.0, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._total_s, self._clock = useful_s, clock
        self._since: float | None = None

    @property
    def useful_s(self) -> float:
        """So far, in all."""
        return self._total_s + (self._clock() - self._since if self._since is not None else 0.0)

    def resume(self) -> None:
        """What comes now is steps."""
        self._since = self._clock()

    def pause(self) -> None:
        """What comes now is not."""
        self._total_s, self._since = self.useful_s, None

    @contextmanager
    def paused(self) -> Generator[None]:
        """Something between steps."""
        running = self._since is not None
        self.pause()
        yield
        if running:
            self.resume()


def write(store: Store, account: Account) -> None:
    """Leave the account of an attempt.

    Raises:
        StoreError: storage failed.
    """
    store.put(f"attempts/{account['attempt']}.json", json.dumps(account, indent=1).encode())


def read(store: Store) -> list[Account]:
    """The accounts of all attempts, in their order.

    Raises:
        StoreError: storage failed.
    """
    accounts: list[Account] = [json.loads(store.get(key)) for key in store.list("attempts/")]
    return sorted((one for one in accounts if "job" in one), key=lambda one: one["attempt"])


def summary(store: Store) -> dict[str, Any]:
    """A run's goodput so far. The time between jobs does not count: nobody was trying.

    Returns:
        useful_s, wall_s, goodput (their quotient), and restarts: attempt, cause and replayed_s of each.

    Raises:
        StoreError: storage failed.
    """
    accounts = read(store)
    ends: dict[str, tuple[float, float]] = {}
    for one in accounts:
        began_s, until_s = (datetime.fromisoformat(one[name]).timestamp() for name in ("job_began", "until"))
        ends[one["job"]] = (began_s, max(until_s, ends.get(one["job"], (0.0, until_s))[1]))
    wall_s = sum(until_s - began_s for began_s, until_s in ends.values())
    useful_s = accounts[-1]["useful_s"] if accounts else 0.0
    return {
        "useful_s": useful_s,
        "wall_s": wall_s,
        "goodput": useful_s / wall_s if wall_s > 0 else 0.0,
        "restarts": [{"attempt": one["attempt"], **one["after"]} for one in accounts if one.get("after")],
    }
