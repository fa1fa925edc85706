"""One job's hold on one run: acquire, train, release; a finished run hands back its result."""

import json
from collections.abc import Callable
from typing import Any, Protocol

from mtl.config import Config
from mtl.data.manifest import Manifest
from mtl.lease import Lease, acquire
from mtl.record import Record
from mtl.store import open_store

Result = dict[str, Any]


class Says(Protocol):
    """Where sentences for people go, such as a console."""

    def line(self, text: str) -> None:
        """One line."""
        ...


def train(config: Config, console: Says, launch: Callable[[str], Result]) -> Result:
    """Own the run while `launch` trains it, and record how it ended.

    Args:
        launch: trains under the owner id it is given.

    Returns:
        The result, of this job or of the one that finished the run before.

    Raises:
        RunOwned: another job owns the run.
    """
    store = open_store(config.storage).child(config.name)
    lease = acquire(store, config.name, on_wait=console.line)
    if isinstance(lease, Record):
        return already(lease, console)
    store.put("config.yaml", config.to_yaml().encode())
    try:
        result = launch(lease.owner.id)
    except BaseException:
        _release_failed(lease)
        raise
    status = "finished" if result["status"] == "finished" else "stopped"
    lease.release(status, json.loads(json.dumps(result)) if status == "finished" else None)
    return result


def already(record: Record, console: Says) -> Result:
    """The result of a finished run."""
    console.line(f"the run '{record.name}' is finished; this is its result (another --name starts another run)")
    return dict(record.result or {})


def _release_failed(lease: Lease) -> None:
    try:
        lease.release("failed")
    except Exception:
        # The error that brought us here is the one to show; an unreleased lease expires by itself.
        return


def try_model(config: Config, manifest: Manifest, console: Says) -> None:
    """Build the model before anything starts, where it is to see images of a size that it may not take.

    Raises:
        ConfigError: it takes none of that size, or can not be built.
    """
    asked = {field: px for field, px in config.augment.other_sizes.items() if px is not None}
    if not asked:
        return
    console.line(f"trying the model on images of {', '.join(f'{px} px ({field})' for field, px in asked.items())}")
    from mtl.parts import build_model, build_specs

    build_model(config, build_specs(config, manifest))
