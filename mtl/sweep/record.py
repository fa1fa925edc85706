"""sweep.json: the truth about a sweep. What it searches, and every trial with what became of it.

One driver writes it, the owner of the sweep's lease, and only by compare-and-swap, so a driver that was replaced fails
at its next write. Each trial is a run of its own below trials/, whose run.json decides whether it is finished.
"""

from collections.abc import Callable
from typing import Any, Literal, final
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, ValidationError

from mtl.errors import Conflict, NotFound, RunError, RunLost
from mtl.store import Store

FORMAT_VERSION = 1
SWEEP, TRIALS = "sweep.json", "trials"

Kind = Literal["single", "uniform", "sampled"]
Status = Literal["started", "finished", "pruned", "failed"]


class _Strict(BaseModel):
    # A metric may be no number, and JSON has no word for that; Python's has, and reads it back.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, ser_json_inf_nan="constants")


@final
class Trial(_Strict):
    """One run of a sweep.

    Attributes:
        id: its folder below trials/.
        kind: a baseline (one task alone; all tasks with weight 1), or sampled.
        task: of a single-task baseline.
        point: where it lies in the unit cube of the space; empty if it does not.
        values: of the fields that are searched, by dotted name.
        status: `started` until it has ended, also while no driver runs.
        epoch: epochs trained when `val` was measured.
        history: (epoch, value of the objective), as far as a driver saw it.
        seconds: from start to end under the driver that saw the end.
    """

    id: str
    kind: Kind
    task: str | None = None
    point: tuple[float, ...] = ()
    values: dict[str, float] = {}
    status: Status = "started"
    epoch: int = 0
    val: dict[str, dict[str, float]] = {}
    test: dict[str, dict[str, float]] = {}
    history: tuple[tuple[int, float], ...] = ()
    seconds: float = 0.0
    error: str | None = None


@final
class Record(_Strict):
    """The content of sweep.json. `write` changes with every write, so no two contents are equal."""

    format_version: int = FORMAT_VERSION
    name: str
    config: str  # YAML: what every trial has in common
    settings: dict[str, Any]  # what a restored sweep may not change
    trials: tuple[Trial, ...] = ()
    write: str = ""


@final
class SweepFile:
    """sweep.json in `store`, as this process last read or wrote it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.record, self._version = _read(store)

    def change(self, change: Callable[[Record], Record], first: Record) -> Record:
        """Replace the content by `change` of it, or of `first` if there is none.

        Raises:
            RunLost: another driver wrote meanwhile.
            StoreError: storage failed.
        """
        record = change(self.record or first).model_copy(update={"write": uuid4().hex})
        try:
            self._version = self._store.put_if(SWEEP, record.model_dump_json(indent=1).encode(), version=self._version)
        except Conflict as error:
            raise RunLost(
                f"Another driver has written to the sweep '{record.name}'.",
                got=f"{self._store.uri}/{SWEEP} changed",
                do="wait for that driver or stop it; rerunning the command goes on from what is there",
            ) from error
        self.record = record
        return record


def _read(store: Store) -> tuple[Record | None, str | None]:
    try:
        raw, version = store.get_versioned(SWEEP)
        return Record.model_validate_json(raw), version
    except NotFound:
        return None, None
    except ValidationError as error:
        raise RunError(
            f"{store.uri}/{SWEEP} is damaged, or written by another version of mtl.",
            got=str(error).splitlines()[0],
            expected=f"format_version {FORMAT_VERSION}",
            do="restore an earlier version of the file, or begin a sweep under another --name",
        ) from error
