"""One worker group's right to commit: held by its rank 0 until the next attempt begins."""

import re
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, final

from mtl.errors import NotFound, RunLost
from mtl.record import CHECKPOINTS, Commit, Record, owned_by, swap
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


def retain(store: Store, record: Record) -> None:
    """Delete the checkpoints that `record`, just returned by `Attempt.commit`, has no use for.

    Left alone: what it names, what a newer attempt may be writing, what this attempt may be uploading beyond its
    newest commit, and every file that is not a checkpoint's.

    Raises:
        StoreError: storage failed; the next commit cleans up what stayed.
    """
    named = {commit.path for commit in (*record.checkpoints, *([record.best] if record.best else []))}
    newest_step = max((commit.step for commit in record.checkpoints), default=0)
    for key in store.list(CHECKPOINTS):
        match = _CHECKPOINT_KEY.match(key)
        if match is None or match[1] in named:
            continue
        step, attempt = int(match[2]), int(match[3])
        if attempt < record.attempt or (attempt == record.attempt and step <= newest_step):
            with suppress(NotFound):
                store.delete(key)
