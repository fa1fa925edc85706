"""run.json: who owns a run, which attempt may write, which checkpoints count.

    acquire        -> Lease     the driver: owns the run, a heartbeat keeps it
    begin_attempt  -> Attempt   rank 0 of a worker group: the only one that may commit, until the next attempt begins

Every change goes through `_swap`, a compare-and-swap of run.json, so a writer that was replaced (a zombie) fails there
and nowhere else. Nobody's wall clock is trusted: a contender takes over when the record has not changed for a while on
the contender's own monotonic clock, or at once when the owning process is provably dead.
"""

import re
import threading
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, final
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from mtl.errors import ConfigError, Conflict, NotFound, RunError, RunLost, RunOwned, StoreError
from mtl.owner import Owner, utc
from mtl.store import Store

FORMAT_VERSION = 1
RUN, STOP, CHECKPOINTS = "run.json", "stop.json", "checkpoints/"
RUN_NAME = re.compile(r"^[a-z0-9][a-z0-9._-]{0,62}$")

_CHECKPOINT_KEY = re.compile(r"^(checkpoints/step-(\d+)-a(\d+))/.")
_SWAP_TRIES = 50  # each lost try means that another writer got through, so a sound store never needs many
_POLL_S = 2.0


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


@final
class Commit(_Strict):
    """A checkpoint known durable: the folder `path` below the run, complete and sealed by `manifest_sha256`."""

    path: str
    step: int
    epoch: int
    samples: int  # positions consumed since the run began
    manifest_sha256: str
    time: str  # UTC, ISO 8601; for people only


@final
class Record(_Strict):
    """run.json. `beat` and `write` change with every write, so no two contents are ever equal."""

    format_version: int = FORMAT_VERSION
    name: str
    status: Literal["running", "stopped", "failed", "finished"]
    attempt: int = 0
    owner: Owner | None
    beat: int = 0
    write: str = ""
    expires: str  # UTC, ISO 8601; for people only
    checkpoints: tuple[Commit, ...] = ()  # newest first
    result: dict[str, JsonValue] | None = None


@dataclass(frozen=True)
class Clock:
    """Time as a waiting process sees it, in seconds; tests bring their own."""

    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


def check_name(name: str) -> None:
    """Refuse a run name that could not be a folder of its own everywhere.

    Raises:
        ConfigError: it does not match `RUN_NAME`.
    """
    if not RUN_NAME.fullmatch(name):
        raise ConfigError(
            "The run name can not be used.",
            got=repr(name),
            expected="1 to 63 of a-z 0-9 . _ - beginning with a letter or digit",
            do="choose another name",
        )


def checkpoint_path(step: int, attempt: int) -> str:
    """The folder, below the run, of the checkpoint that `attempt` writes after `step` steps."""
    return f"{CHECKPOINTS}step-{step:09d}-a{attempt}"


def read(store: Store) -> Record | None:
    """The record of the run at `store`, None if there is none yet.

    Raises:
        RunError: it is damaged, or written by a newer version.
        StoreError: storage can not be read.
    """
    return _read(store)[0]


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
    record = _swap(store, take)
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
            _swap(self._store, self._renewed)
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
            record = _owned_by(record, self.owner.id)
            return record.model_copy(update={"owner": None, "status": status, "result": result, "expires": utc()})

        return _swap(self._store, end)

    def _renewed(self, record: Record | None) -> Record:
        update = {"expires": utc(self._takeover_after_s)}
        return _owned_by(record, self.owner.id).model_copy(update=update)

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


@final
@dataclass(frozen=True)
class Attempt:
    """The right to commit, held by rank 0 of one worker group until a later attempt begins.

    Attributes:
        number: 1 for the first worker group of the run.
        record: the record as this attempt began; its first checkpoint is where to resume.
    """

    store: Store
    owner_id: str
    number: int
    record: Record

    def commit(self, commit: Commit, *, damaged: Collection[Commit] = (), keep: int = 2) -> Record:
        """Make a completely uploaded checkpoint the newest of the run. Committing the same one again is harmless.

        Args:
            commit: what was saved.
            damaged: commits that failed to load in this attempt; they leave the list, so that `keep` sound ones stay.
            keep: how many checkpoints run.json names at most, at least 2.

        Returns:
            The record that names it, for `retain`.

        Raises:
            RunLost: the run has another owner, or a newer attempt has begun. Nothing was changed.
            StoreError: storage failed; the commit may or may not have happened.
        """
        assert keep >= 2, keep

        def add(record: Record | None) -> Record:
            record = _owned_by(record, self.owner_id)
            if record.attempt != self.number:
                raise RunLost(
                    f"Attempt {self.number} of run '{record.name}' was replaced; its checkpoint was not committed.",
                    got=f"attempt {record.attempt} is running",
                    do="nothing: this is a worker that was thought dead, and the newer attempt goes on",
                )
            if commit in record.checkpoints:
                return record
            older = [c for c in record.checkpoints if c not in damaged and c.path != commit.path]
            return record.model_copy(update={"checkpoints": (commit, *older)[:keep]})

        return _swap(self.store, add)


def begin_attempt(store: Store, owner_id: str) -> Attempt:
    """Start the next attempt; commits of all earlier ones fail from here on.

    Args:
        store: the run.
        owner_id: `Lease.owner.id` of the driver; any process that knows it may begin an attempt.

    Raises:
        RunLost: the run has another owner, or none.
        StoreError: storage failed.
    """

    def bump(record: Record | None) -> Record:
        record = _owned_by(record, owner_id)
        return record.model_copy(update={"attempt": record.attempt + 1})

    record = _swap(store, bump)
    return Attempt(store, owner_id, record.attempt, record)


def retain(store: Store, record: Record) -> None:
    """Delete the checkpoints that `record`, just returned by `Attempt.commit`, has no use for.

    Left alone: what it names, what a newer attempt may be writing, what this attempt may be uploading beyond its
    newest commit, and every file that is not a checkpoint's.

    Raises:
        StoreError: storage failed; the next commit cleans up what stayed.
    """
    named = {commit.path for commit in record.checkpoints}
    newest_step = max((commit.step for commit in record.checkpoints), default=0)
    for key in store.list(CHECKPOINTS):
        match = _CHECKPOINT_KEY.match(key)
        if match is None or match[1] in named:
            continue
        step, attempt = int(match[2]), int(match[3])
        if attempt < record.attempt or (attempt == record.attempt and step <= newest_step):
            with suppress(NotFound):
                store.delete(key)


def request_stop(store: Store, owner_id: str | None = None) -> None:
    """Ask the owner to commit and stop. The request names that owner, so it is void once the run is acquired anew.

    Args:
        store: the run.
        owner_id: whom to stop; None for whoever owns the run now.

    Raises:
        RunError: nobody owns the run.
        StoreError: storage failed.
    """
    if owner_id is None:
        record = read(store)
        if record is None or record.owner is None:
            raise RunError(
                f"The run at {store.uri} can not be stopped.",
                got="no such run" if record is None else f"status {record.status}",
                expected="status running",
                do="check the name",
            )
        owner_id = record.owner.id
    store.put(STOP, _Stop(owner_id=owner_id).model_dump_json().encode())


def stop_requested(store: Store, owner_id: str) -> bool:
    """Whether this owner was asked to stop.

    Raises:
        StoreError: storage failed.
    """
    try:
        return _Stop.model_validate_json(store.get(STOP)).owner_id == owner_id
    except (NotFound, ValidationError):
        return False


class _Stop(_Strict):
    owner_id: str


class _Version(BaseModel):
    format_version: int


def _read(store: Store) -> tuple[Record | None, str | None]:
    try:
        raw, version = store.get_versioned(RUN)
    except NotFound:
        return None, None
    try:
        written_by = _Version.model_validate_json(raw).format_version
        if written_by <= FORMAT_VERSION:
            return Record.model_validate_json(raw), version
    except ValidationError as error:
        raise RunError(
            f"{store.uri}/{RUN} is damaged.",
            got=str(error),
            do="restore an earlier version of the file, or start under another run name",
        ) from error
    raise RunError(
        f"The run at {store.uri} was written by a newer mtl.",
        got=f"format_version {written_by}",
        expected=f"at most {FORMAT_VERSION}",
        do="upgrade mtl, or start under another run name",
    )


def _swap(store: Store, change: Callable[[Record | None], Record]) -> Record:
    """Replace run.json by `change` of it, atomically; the record that is there afterwards.

    `change` may be called several times; it raises to give up, and returns its argument where nothing is to be written.
    """
    mine = None
    for _ in range(_SWAP_TRIES):
        current, version = _read(store)
        if current is not None and current.write == mine:
            return current  # the write had landed, only its answer was lost
        wanted = change(current)
        if wanted is current:
            return wanted
        mine = uuid4().hex
        wanted = wanted.model_copy(update={"beat": wanted.beat + 1, "write": mine})
        with suppress(Conflict):
            store.put_if(RUN, wanted.model_dump_json(indent=1).encode(), version=version)
            return wanted
    raise StoreError(
        f"{store.uri}/{RUN} could not be changed.",
        got=f"{_SWAP_TRIES} conditional writes in a row were refused",
        do="check that the storage supports conditional writes",
    )


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


def _owned_by(record: Record | None, owner_id: str) -> Record:
    """The record, which `owner_id` owns; raises RunLost if it does not."""
    if record is not None and record.owner is not None and record.owner.id == owner_id:
        return record
    if record is None:
        what, got = "This job no longer owns its run.", f"{RUN} is gone"
    else:
        what = f"This job no longer owns the run '{record.name}'."
        got = f"owner: {record.owner}" if record.owner else f"status {record.status}, no owner"
    raise RunLost(what, got=got, do="rerun the command: it resumes from the last commit once the run is free")
