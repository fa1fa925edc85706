"""Checks of the storage for runs: does it keep its promises to this identity, and what does it hold already."""

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from uuid import uuid4

from mtl.config import Config
from mtl.errors import Conflict, StoreError
from mtl.findings import Finding
from mtl.preflight import check_resumable
from mtl.record import read
from mtl.store import Store, open_store
from mtl.store.identity import identity


def storage(store: Store) -> Iterator[Finding]:
    """A round trip of all that a run does to storage, on an object of its own, which is removed again."""
    key = f"doctor-{uuid4().hex}.json"
    first, second, third = (json.dumps({"doctor": uuid4().hex}).encode() for _ in range(3))
    began = time.perf_counter()
    removed = False
    try:
        version = store.put_if(key, first, version=None)
        if store.get_versioned(key) != (first, version):
            yield _unsound(store, "an object that was just written reads differently")
            return
        if not _refused(store, key, second, None):
            yield _unsound(store, "it replaces an object that a write was to create")
            return
        newer = store.put_if(key, second, version=version)
        if not _refused(store, key, third, version):
            yield _unsound(store, "it accepts a write that names an old version")
            return
        if store.get(key) != second or newer == version or key not in store.list("doctor-"):
            yield _unsound(store, "an object that was replaced reads or lists as it was before")
            return
        store.delete(key)
        removed = True
    finally:
        if not removed:
            with suppress(StoreError):
                store.delete(key)
    seconds = time.perf_counter() - began
    yield Finding(
        "ok",
        "storage",
        f"{store.uri} reads, writes, compares-and-swaps, lists and deletes ({seconds:.1f} s), as {identity(store)}",
    )


def _refused(store: Store, key: str, data: bytes, version: str | None) -> bool:
    try:
        store.put_if(key, data, version=version)
    except Conflict:
        return True
    return False


def _unsound(store: Store, how: str) -> Finding:
    return Finding(
        "fail",
        "storage",
        f"{store.uri} does not compare-and-swap: {how}.",
        "two jobs could own one run, and overwrite each other's commits",
        "keep runs on storage with conditional writes, such as AWS S3 or Ceph, or in a folder of this machine",
    )


def run(config: Config) -> Iterator[Finding]:
    """What is already kept under the run's name."""
    store = open_store(config.storage).child(config.name)
    record = read(store)
    if record is None:
        yield Finding("ok", "run", f"'{config.name}' is a new run")
        return
    step = record.checkpoints[0].step if record.checkpoints else 0
    if record.status == "finished":
        yield Finding(
            "warn",
            "run",
            f"'{config.name}' is finished.",
            "training it again shows its result and does nothing else",
            "choose another --name to train anew",
        )
        return
    if record.status == "running" and record.owner is not None and not record.owner.is_dead():
        owner = record.owner
        yield Finding(
            "warn",
            "run",
            f"'{config.name}' is owned by process {owner.pid} of {owner.user} on {owner.host}.",
            "while that job lives, another one stops; a minute after its last sign of life it takes over",
            "wait for it, stop it, or choose another --name",
        )
        return
    check_resumable(store, config)
    yield Finding("ok", "run", f"'{config.name}' goes on from step {step:,}")
