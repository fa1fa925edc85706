"""All trackers of a run as one that never raises."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any, final

from mtl.config import Config
from mtl.errors import ConfigError
from mtl.store import Store
from mtl.tracking.base import Row, Tracked, Tracker
from mtl.tracking.jsonl import JsonLines
from mtl.tracking.tensorboard import TensorBoard


@final
class Trackers:
    """Tells every tracker; one that raises is said once and dropped.

    Args:
        trackers: by the name that a message uses.
        step: of the rows that come before the first one with a step of its own.
        say: where the message goes.
    """

    def __init__(self, trackers: Sequence[tuple[str, Tracker]], step: int, say: Callable[[str], None]) -> None:
        self._trackers, self._step, self._say = list(trackers), step, say

    def log(self, row: Row) -> None:
        """Take in a row; one without a step belongs to the last one that had one."""
        self._step = row.get("step", self._step)
        self._each(lambda tracker: tracker.log(self._step, row))

    def flush(self) -> None:
        """Make durable what there is."""
        self._each(lambda tracker: tracker.flush())

    def close(self) -> None:
        """Nothing comes any more."""
        self._each(lambda tracker: tracker.close())
        self._trackers.clear()

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for entry in list(self._trackers):
            name, tracker = entry
            try:
                call(tracker)
            except Exception as error:
                self._say(dropped(name, error))
                if entry in self._trackers:  # else another thread has met its end too
                    self._trackers.remove(entry)


def open_trackers(config: Config, store: Store, attempt: int, step: int, say: Callable[[str], None]) -> Trackers:
    """The trackers that a configuration asks for, of an attempt that goes on from `step`.

    Raises:
        ConfigError: there is no such tracker of the user's own.
    """
    run, wanted = Tracked(config, store, attempt, step), config.tracking
    made: list[tuple[str, Tracker]] = [("metrics/*.jsonl", JsonLines(run))]
    if wanted.tensorboard:
        made.append(("TensorBoard", TensorBoard(run)))
    if wanted.own is not None:
        kind = _own(wanted.own)
        try:
            made.append((wanted.own, kind(run, **wanted.arguments)))
        except Exception as error:  # such as a server that is away
            say(dropped(wanted.own, error))
    return Trackers(made, step, say)


def dropped(name: str, error: Exception) -> str:
    """What is said of a tracker that has failed."""
    return f"the tracker {name} failed and gets nothing more; training goes on: {type(error).__name__}: {error}"


def _own(address: str) -> Callable[..., Any]:
    module, _, name = address.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"The tracker '{address}' can not be imported: {error}",
            got=f"tracking.own={address}",
            expected="module:Class, importable from the folder the job was started in",
            do="docs/operations.md shows one in ten lines",
        ) from error
