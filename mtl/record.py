"""run.json: who owns a run, which attempt may write, which checkpoints count.

Every change goes through `swap`, a compare-and-swap of run.json, so a writer that was replaced (a zombie) fails there
and nowhere else. Nobody's wall clock is trusted: times in it are for people.
"""

import re
from collections.abc import Callable
from contextlib import suppress
from typing import Literal, final
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from mtl.errors import ConfigError, Conflict, NotFound, RunError, RunLost, StoreError
from mtl.owner import Owner
from mtl.store import Store

FORMAT_VERSION = 1
RUN, CHECKPOINTS = "run.json", "checkpoints/"
RUN_NAME = re.compile(r"^[a-z0-9][a-z0-9._-]{0,62}$")

_SWAP_TRIES = 50  # each lost try means that another writer got through, so a sound store never needs many


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
class Skipped(_Strict):
    """Steps, from `first` to `last`, that are passed over; the object `images` names their samples (mtl/rewind.py)."""

    first: int
    last: int
    images: str


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
    best: Commit | None = None  # of them, or an older one that is kept for its metric
    result: dict[str, JsonValue] | None = None
    skipped: tuple[Skipped, ...] = ()


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


def swap(store: Store, change: Callable[[Record | None], Record]) -> Record:
    """Replace run.json by `change` of it, atomically; the record that is there afterwards.

    `change` may be called several times; it raises to give up, and returns its argument where nothing is to be written.

    Raises:
        RunError: run.json is damaged, or written by a newer version.
        StoreError: storage failed; the record may or may not have been replaced.
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


def owned_by(record: Record | None, owner_id: str) -> Record:
    """The record, if `owner_id` owns it.

    Raises:
        RunLost: the run has another owner, or none, or is gone.
    """
    if record is not None and record.owner is not None and record.owner.id == owner_id:
        return record
    if record is None:
        what, got = "This job no longer owns its run.", f"{RUN} is gone"
    else:
        what = f"This job no longer owns the run '{record.name}'."
        got = f"owner: {record.owner}" if record.owner else f"status {record.status}, no owner"
    raise RunLost(what, got=got, do="rerun the command: it resumes from the last commit once the run is free")


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
