"""What a tracker is, and what it is told."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, final

from mtl.config import Config
from mtl.store import Store

Row = Mapping[str, Any]
"""What one line of metrics/*.jsonl holds: numbers and words, nested by name.

A row of progress has step, epoch, loss by task, images_per_s and more; one of an evaluation has split, epoch and
metrics by task.
"""


@final
@dataclass(frozen=True)
class Tracked:
    """The attempt that a tracker follows.

    Attributes:
        config: of the run; `config.name` is its name, `config.model_dump(mode="json")` its settings.
        store: of the run.
        attempt: 1 for the first worker group of the run.
        step: the step that it goes on from, 0 for the first. Rows of later steps that an earlier attempt has left were
            never committed: they come again.
    """

    config: Config
    store: Store
    attempt: int
    step: int


class Tracker(Protocol):
    """Takes in the metrics of a run, in the process of rank 0.

    It is built with a `Tracked` and the keyword arguments of `tracking.arguments`. An error of it is said once, and it
    is not called again; training goes on.
    """

    def log(self, step: int, row: Row) -> None:
        """Take in a row. Training waits for this."""
        ...

    def flush(self) -> None:
        """Make durable what there is: the run commits. Another thread may call this while `log` is called."""
        ...

    def close(self) -> None:
        """Nothing comes any more."""
        ...


def scalars(row: Row) -> dict[str, float]:
    """The numbers of a row by path, such as loss/object, or val/object/accuracy where it is an evaluation."""
    if row.get("kind") == "evaluation":
        split = row["split"]
        return dict(_leaves(row["metrics"], f"{split}/")) | {f"{split}/quarantined": float(row["quarantined"])}
    return {name: value for name, value in _leaves(row, "") if name not in ("step", "steps")}


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", float(value)
