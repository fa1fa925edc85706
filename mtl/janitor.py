"""What a run's storage holds that nobody needs, for a person to see and to delete: jobs/janitor.py.

    unnamed      checkpoint files that no commit names or ever will: `unneeded` in mtl/attempt.py
    unfinished   writes whose writer was killed: nothing has come of them for a long time

A run in progress loses nothing. What its attempt may be writing is unnamed for sure only once nobody can commit it any
more. So the claim of an owner that was killed, which for a long time gave no sign of life, is ended first, in the way
in which another job takes a run over.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from mtl.attempt import unneeded
from mtl.console import counted
from mtl.errors import NotFound, RunError, RunOwned
from mtl.lease import Clock, Lease, acquire
from mtl.record import CHECKPOINTS, Record, read
from mtl.store import Stat, Store, Unfinished


@dataclass(frozen=True)
class Litter:
    """What may be deleted.

    Attributes:
        unnamed: checkpoint files, by key.
        left: what looks like litter and may not be, a sentence each.
    """

    unnamed: Mapping[str, Stat]
    unfinished: Sequence[Unfinished]
    left: Sequence[str]


def find(store: Store, older_than_s: float) -> Litter:
    """What `delete` would delete; nothing is changed.

    Args:
        store: a run, or another folder that something was written to: it may hold unfinished writes.
        older_than_s: how long a writer is silent, in seconds, before it is taken for dead.

    Raises:
        RunError: there is no run, and nothing unfinished; or its run.json is damaged.
        StoreError: storage can not be read.
    """
    record = read(store)
    if record is not None and _silent(record, older_than_s):
        record = _unowned(record)
    return _look(store, record, older_than_s)


def delete(store: Store, older_than_s: float, on_wait: Callable[[str], None], clock: Clock | None = None) -> Litter:
    """Delete what nobody needs, and return what that was.

    Args:
        store, older_than_s: as for `find`.
        on_wait: gets one sentence where a claim has to be watched for a while before it is ended.

    Raises:
        RunError: there is no run, and nothing unfinished; or its run.json is damaged.
        StoreError: storage failed; another call deletes what is left.
    """
    litter = _look(store, _settled(store, older_than_s, on_wait, clock), older_than_s)
    for key in litter.unnamed:
        store.delete(key)
    for write in litter.unfinished:
        store.discard(write)
    return litter


def report(litter: Litter, *, deleted: bool) -> list[str]:
    """A line for each thing, why others stay, and what it comes to."""
    now_s = time.time()
    lines = [_line(key, it, now_s, "no commit names it") for key, it in litter.unnamed.items()]
    lines += [_line(it.key, it, now_s, "it was never finished") for it in litter.unfinished]
    if not lines:
        return [*litter.left, "nothing to delete"]
    size_bytes = sum(it.size_bytes for it in (*litter.unnamed.values(), *litter.unfinished))
    total = f"{len(lines):,} in all, {_amount(size_bytes)}"
    end = f"deleted: {total}" if deleted else f"can be deleted: {total}; --delete does it"
    return [*lines, *litter.left, end]


def _look(store: Store, record: Record | None, older_than_s: float) -> Litter:
    begun, now_s = store.unfinished(), time.time()
    if record is None and not begun:
        raise RunError(
            f"There is no run at {store.uri}.",
            got="no run.json, and no unfinished write",
            expected="a run, or another folder in which a writer was killed",
            do="name the folder that jobs/train.py printed: STORAGE/NAME",
        )
    left: list[str] = []
    old = [write for write in begun if now_s - write.written_s > older_than_s]
    if len(old) < len(begun):
        young = counted(len(begun) - len(old), "unfinished write")
        left.append(f"left alone: {young}, younger than {_age(older_than_s)}")
    if record is None:
        return Litter({}, old, left)
    keys = store.list(CHECKPOINTS)
    unnamed = unneeded(keys, record)
    if more := len(unneeded(keys, _unowned(record))) - len(unnamed):
        files = counted(more, "file")
        left.append(f"left alone: {files} that attempt {record.attempt} may be writing, for {record.owner}")
    return Litter(_stats(store, unnamed), old, left)


def _settled(store: Store, older_than_s: float, on_wait: Callable[[str], None], clock: Clock | None) -> Record | None:
    """The record of the run, after a claim that stands in the way, and whose owner is silent, was ended."""
    record = read(store)
    if record is None or not _silent(record, older_than_s):
        return record
    keys = store.list(CHECKPOINTS)
    if unneeded(keys, record) == unneeded(keys, _unowned(record)):
        return record
    try:
        held = acquire(store, record.name, on_wait=on_wait, clock=clock)
    except RunOwned:  # it lives, and the clock of one of the machines is wrong
        return record
    return held.release("stopped") if isinstance(held, Lease) else held


def _silent(record: Record, older_than_s: float) -> bool:
    """Whether the run has an owner whose last sign of life is older than that."""
    until = datetime.fromisoformat(record.expires)
    return record.owner is not None and (datetime.now(UTC) - until).total_seconds() > older_than_s


def _unowned(record: Record) -> Record:
    return record.model_copy(update={"owner": None})


def _stats(store: Store, keys: Sequence[str]) -> dict[str, Stat]:
    """Those that are still there."""
    found: dict[str, Stat] = {}
    for key in keys:
        try:
            found[key] = store.stat(key)
        except NotFound:  # the run has deleted it meanwhile
            continue
    return found


def _line(key: str, it: Stat | Unfinished, now_s: float, why: str) -> str:
    return f"{key}  {_amount(it.size_bytes)}, {_age(now_s - it.written_s)} old: {why}"


def _amount(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"


def _age(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h"
