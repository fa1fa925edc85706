"""One worker group's right to commit: held by its rank 0 until the next attempt begins."""

import math
import re
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, final

from mtl.errors import NotFound, RunLost
from mtl.record import CHECKPOINTS, Commit, Record, checkpoint_path, owned_by, swap
from mtl.store import Store

_CHECKPOINT_KEY = re.compile(r"^(checkpoints/step-(\d+)-a(\d+))/.")


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

    def commit(self, commit: Commit, *, damaged: Collection[Commit] = (), keep: int = 2, best: bool = False) -> Record:
        """Make a completely uploaded checkpoint the newest of the run. Committing the same one again is harmless.

        Args:
            commit: what was saved.
            damaged: commits that failed to load in this attempt; they leave the list, so that `keep` sound ones stay.
            keep: how many checkpoints run.json names at most beside the best one, at least 2.
            best: whether it takes the place of the best one.

        Returns:
            The record that names it, for `retain`.

        Raises:
            RunLost: the run has another owner, or a newer attempt has begun. Nothing was changed.
            StoreError: storage failed; the commit may or may not have happened.
        """
        assert keep >= 2, keep

        def add(record: Record) -> dict[str, Any]:
            if commit in record.checkpoints:
                return {}
            older = [c for c in record.checkpoints if c not in damaged and c.path != commit.path]
            choice = commit if best else record.best if record.best not in damaged else None
            return {"checkpoints": (commit, *older)[:keep], "best": choice}

        return self.change(add)

    def change(self, update: Callable[[Record], dict[str, Any]]) -> Record:
        """Change fields of the record, while this attempt may; nothing is written where there are none.

        Raises:
            RunLost: the run has another owner, or a newer attempt has begun. Nothing was changed.
            StoreError: storage failed; the change may or may not have been made.
        """

        def changed(record: Record | None) -> Record:
            record = owned_by(record, self.owner_id)
            if record.attempt != self.number:
                raise RunLost(
                    f"Attempt {self.number} of run '{record.name}' was replaced; its checkpoint was not committed.",
                    got=f"attempt {record.attempt} is running",
                    do="nothing: this is a worker that was thought dead, and the newer attempt goes on",
                )
            fields = update(record)
            return record.model_copy(update=fields) if fields else record

        return swap(self.store, changed)


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
        record = owned_by(record, owner_id)
        return record.model_copy(update={"attempt": record.attempt + 1})

    record = swap(store, bump)
    return Attempt(store, owner_id, record.attempt, record)


def unneeded(keys: Iterable[str], record: Record) -> list[str]:
    """The checkpoint files among `keys` of a run that no commit names, and that none ever will.

    Left out: what `record` names; what a newer attempt may be writing; while the run is owned, what its attempt may be
    uploading beyond its own newest commit; and every file that is not a checkpoint's.

    The answer stays true while others change the record: an attempt commits in the order of its steps, and only while
    it is the newest one of a run that is owned.
    """
    named = {commit.path for commit in (*record.checkpoints, *([record.best] if record.best else []))}
    # Of this attempt's own commits alone: it may have gone back before a damaged one of an earlier attempt.
    own = [c.step for c in record.checkpoints if c.path == checkpoint_path(c.step, record.attempt)]
    settled = math.inf if record.owner is None else max(own, default=-1)
    found: list[str] = []
    for key in keys:
        match = _CHECKPOINT_KEY.match(key)
        if match is None or match[1] in named:
            continue
        step, attempt = int(match[2]), int(match[3])
        if attempt < record.attempt or (attempt == record.attempt and step <= settled):
            found.append(key)
    return found


def retain(store: Store, record: Record) -> None:
    """Delete the checkpoints that the run has no use for.

    Args:
        record: just returned by `Attempt.commit`.

    Raises:
        StoreError: storage failed; the next commit cleans up what stayed.
    """
    for key in unneeded(store.list(CHECKPOINTS), record):
        with suppress(NotFound):
            store.delete(key)
