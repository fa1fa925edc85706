"""Owning a run: `acquire` gives the driver a `Lease`, and a heartbeat keeps it.

A contender takes over when the record has not changed for a while on the contender's own monotonic clock, or at once
when the owning process is provably dead.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, final

from pydantic import JsonValue

from mtl.errors import RunError, RunLost, RunOwned, StoreError
from mtl.owner import Owner, utc
from mtl.record import Record, check_name, owned_by, read, swap
from mtl.store import Store

_POLL_S = 2.0


@dataclass(frozen=True)
class Clock:
    """Time as a waiting process sees it, in seconds; tests bring their own."""

    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


def acquire(
    store: Store,
    name: str,
    *,
    on_wait: Callable[[str], None],
    takeover_after_s: float = 60.0,
    heartbeat_s: float = 15.0,
    clock: Clock | None = None,
) -> "Lease | Record":
    """Become the owner of the run at `store`; of any number of contenders exactly one does.

    A run that stopped or failed, or whose owner is provably dead, is taken at once; one that claims to be running is
    watched first. `on_wait` gets one sentence when that watch begins.

    Returns:
        The lease, its heartbeat running; or, if the run has finished, its record: a finished run is never owned again.

    Raises:
        ConfigError: the name can not be used.
        RunOwned: the owner is alive: its record changed within `takeover_after_s`.
        RunError: run.json is damaged.
        StoreError: storage failed.
    """
    check_name(name)
    clock = clock or Clock()
    silent = _watch(store, takeover_after_s, on_wait, clock)
    owner = Owner.here()

    def take(record: Record | None) -> Record:
        expires = utc(takeover_after_s)
        if record is None:
            return Record(name=name, status="running", owner=owner, expires=expires)
        if record.status == "finished":
            return record
        if record.owner is not None and record.write != silent and not record.owner.is_dead():
            raise _owned(record.name, record.owner)
        return record.model_copy(
            update={"name": name, "status": "running", "owner": owner, "expires": expires, "result": None}
        )

    asked_at = clock.monotonic()
    record = swap(store, take)
    if record.status == "finished":
        return record
    return Lease(store, owner, record, takeover_after_s, heartbeat_s, asked_at, clock)


@final
class Lease:
    """Ownership of a run from `acquire` until `release`, renewed by a heartbeat thread.

    Attributes:
        owner: this process's claim; workers need `owner.id` for `begin_attempt`.
        record: the record as it was acquired.
    """

    def __init__(
        self,
        store: Store,
        owner: Owner,
        record: Record,
        takeover_after_s: float,
        heartbeat_s: float,
        renewed_at: float,
        clock: Clock,
    ) -> None:
        self.owner, self.record = owner, record
        self._store, self._clock = store, clock
        self._takeover_after_s, self._heartbeat_s = takeover_after_s, heartbeat_s
        self._renewed_at = renewed_at
        self._lost: RunLost | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"heartbeat of {record.name}", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> RunLost | None:
        """Why this process no longer owns the run, None while it does. Ask between steps, and raise it."""
        return self._lost

    def beat(self) -> None:
        """Renew once. Failing storage is forgiven until half of `takeover_after_s` has passed since the last success.

        Later than that a contender may be about to take over; the answer is found in `lost`.
        """
        asked_at = self._clock.monotonic()
        try:
            swap(self._store, self._renewed)
        except StoreError as error:
            silent_s = self._clock.monotonic() - self._renewed_at
            if silent_s > self._takeover_after_s / 2:
                self._lose(f"run.json could not be renewed for {silent_s:.0f} s: {error.what}")
        except RunError as error:
            self._lose(f"{error.what} {error.got or ''}".strip())
        else:
            self._renewed_at = asked_at

    def release(
        self, status: Literal["stopped", "failed", "finished"], result: dict[str, JsonValue] | None = None
    ) -> Record:
        """End the ownership. Calling it again, also after a StoreError, is harmless.

        Args:
            status: what the run is now; a finished one is never acquired again.
            result: final metrics, for whoever reruns a finished run.

        Raises:
            RunLost: another process owns the run.
            StoreError: storage failed; the run may or may not have been released.
        """
        self._closing.set()
        self._thread.join(timeout=self._heartbeat_s)

        def end(record: Record | None) -> Record:
            if record is not None and record.owner is None and record.status == status:
                return record
            record = owned_by(record, self.owner.id)
            return record.model_copy(update={"owner": None, "status": status, "result": result, "expires": utc()})

        return swap(self._store, end)

    def _renewed(self, record: Record | None) -> Record:
        update = {"expires": utc(self._takeover_after_s)}
        return owned_by(record, self.owner.id).model_copy(update=update)

    def _lose(self, why: str) -> None:
        if not self._closing.is_set():
            self._lost = RunLost(
                f"This job lost the run '{self.record.name}'.",
                got=why,
                do="rerun the command: it resumes from the last commit",
            )

    def _keep(self) -> None:
        try:
            while self._lost is None and not self._closing.wait(self._heartbeat_s):
                self.beat()
        finally:
            if self._lost is None:
                self._lose("the heartbeat thread ended with an unexpected error, shown in the log")


def _watch(store: Store, takeover_after_s: float, on_wait: Callable[[str], None], clock: Clock) -> str | None:
    """Wait until the owner of the run is known to be alive or silent; the id of the write since which it was silent.

    None if there was nothing to wait for.
    """
    record = read(store)
    if record is None or record.owner is None or record.owner.is_dead():
        return None
    seen_at = clock.monotonic()
    on_wait(
        f"Run '{record.name}' belongs to {record.owner}; "
        f"it is taken over if that stays silent for {takeover_after_s:.0f} s."
    )
    while clock.monotonic() - seen_at < takeover_after_s:
        clock.sleep(min(_POLL_S, takeover_after_s / 10))
        now = read(store)
        if now is None or now.owner is None or now.owner.is_dead():
            return None
        if now.write != record.write:
            raise _owned(now.name, now.owner)
    return record.write


def _owned(name: str, owner: Owner) -> RunOwned:
    return RunOwned(
        f"The run '{name}' belongs to another live job.",
        got=f"owner: {owner}",
        do="wait for that job or stop it, or choose another run name",
    )
