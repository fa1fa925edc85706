"""Writes a data set: many shards at once, nothing twice, and the manifest last.

A plan is a hash of everything that decides the result. Each shard leaves a part in parts/ once it is complete, so a
rerun with the same plan writes only what is missing. Rows lie in the order of a keyed hash of their id: neighbours on
storage have nothing in common.
"""

import os
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import final

from pydantic import ValidationError

from mtl.data.example import Example
from mtl.data.files import SPLITS
from mtl.data.groups import find_groups
from mtl.data.manifest import FOOTERS, INDEX, MANIFEST, Label, Manifest
from mtl.data.plan import DEFAULT_LAYOUT, Layout, Shard, check, plan_hash, shards
from mtl.data.shard import Part, write_shard
from mtl.data.summary import Written, build_index, build_manifest
from mtl.errors import DataError, NotFound
from mtl.progress import Progress
from mtl.store import Store

_DELETIONS = 16  # at once
_SHOWN = 10


def write(
    store: Store,
    name: str,
    examples: Sequence[Example],
    labels: dict[str, Label],
    layout: Layout = DEFAULT_LAYOUT,
    *,
    workers: int | None = None,
    skip_bad: bool = False,
    overwrite: bool = False,
    source: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Write the data set `name` to `store` and return its manifest. If it is already there, nothing happens.

    Args:
        examples: with unique ids, values for each of `labels`, and at least one in the split train.
        layout: order and sizes.
        workers: threads, each with one shard; by default one for each CPU.
        skip_bad: leave out damaged images instead of raising.
        overwrite: replace a finished data set.
        source: where the examples come from, for people; recorded in the manifest.
        progress: counts examples.

    Raises:
        DataError: an example is wrong or damaged, there is none to train on, or another data set is finished there.
        StoreError: storage failed. A rerun goes on from what is complete.
    """
    check(examples, labels)
    plan = plan_hash(name, examples, labels, layout)
    if finished := _finished(store, plan, overwrite):
        if progress:
            progress.update(len(examples), "already there")
        return finished
    splits = sorted({example.split for example in examples}, key=SPLITS.index)
    todo = [shard for split in splits for shard in shards(split, examples, layout)]
    writing = _Writing(store, labels, layout, plan, skip_bad, progress)
    parts = writing.write(todo, workers or os.cpu_count() or 1)
    written = [(shard, part) for shard, part in zip(todo, parts, strict=True) if part.rows]
    origin = {**(source or {}), **_recorded(layout, parts), "plan": plan}
    made = build_manifest(name, labels, written, origin, find_groups(examples, labels))
    _finish(store, written, made)
    return made


def _finished(store: Store, plan: str, overwrite: bool) -> Manifest | None:
    """The manifest at `store` if it fulfils `plan`; removed to `overwrite`, as it would describe a mixture."""
    try:
        store.stat(MANIFEST)
    except NotFound:
        return None
    if overwrite:
        store.delete(MANIFEST)
        return None
    found = Manifest.load(store)
    if found.source.get("plan") != plan:
        raise DataError(
            f"Another data set is finished at {store.uri}.",
            got=f"{found.name}, with other images, labels or options",
            expected="an empty place, or the same data set",
            do="write elsewhere, or replace it with --overwrite",
        )
    _remove(store, store.list("parts/"))
    return found


class _Stopped(Exception):
    """Another shard failed."""


@final
class _Writing:
    """The parallel part: shards that are not there yet, each in a thread, through a temporary file."""

    def __init__(
        self,
        store: Store,
        labels: dict[str, Label],
        layout: Layout,
        plan: str,
        skip_bad: bool,
        progress: Progress | None,
    ) -> None:
        self._store, self._labels, self._layout, self._plan = store, labels, layout, plan
        self._skip_bad, self._progress = skip_bad, progress
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._done = 0

    def write(self, shards: Sequence[Shard], workers: int) -> list[Part]:
        """Write what is missing; the parts of all `shards`."""
        existing = {*self._store.list("parts/")}
        with tempfile.TemporaryDirectory(prefix="mtl-prepare-") as folder, ThreadPoolExecutor(workers) as pool:
            try:
                begun = [shard for shard in shards if shard.part in existing]
                kept = {
                    shard.name: part for shard, part in zip(begun, pool.map(self._kept, begun), strict=True) if part
                }
                self._tick(sum(len(shard.examples) for shard in begun if shard.name in kept))
                futures = {
                    shard.name: pool.submit(self._write, shard, Path(folder), shard.part in existing)
                    for shard in shards
                    if shard.name not in kept
                }
                done, _ = wait(futures.values(), return_when=FIRST_EXCEPTION)
                kept |= {name: future.result() for name, future in futures.items() if future in done}
            finally:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
        return [kept[shard.name] for shard in shards]

    def _kept(self, shard: Shard) -> Part | None:
        """The part of a shard that is complete, if it belongs to this plan."""
        try:
            part = Part.model_validate_json(self._store.get(shard.part))
            complete = part.plan == self._plan and self._store.stat(shard.path).size_bytes == part.shard_bytes
        except (ValidationError, NotFound):
            return None
        return part if complete and (self._skip_bad or not part.skipped) else None

    def _write(self, shard: Shard, folder: Path, stale: bool) -> Part:
        if stale:
            self._store.delete(shard.part)  # first: it must never describe another plan's shard
        path = folder / f"{shard.name}.parquet"
        try:
            part = write_shard(
                path,
                shard,
                self._labels,
                self._layout,
                plan=self._plan,
                skip_bad=self._skip_bad,
                tick=self._tick,
            )
            self._store.put_file(shard.path, path)
        finally:
            path.unlink(missing_ok=True)
        self._store.put(shard.part, part.model_dump_json().encode())
        return part

    def _tick(self, examples: int) -> None:
        if self._stop.is_set():
            raise _Stopped
        with self._lock:
            self._done += examples
            if self._progress:
                self._progress.update(self._done)


def _recorded(layout: Layout, parts: Iterable[Part]) -> dict[str, str]:
    skipped = [line for part in parts for line in part.skipped]
    return {
        "seed": str(layout.seed),
        **({"short_side_px": str(layout.short_side_px)} if layout.short_side_px else {}),
        **({"skipped": str(len(skipped)), "skipped_first": "; ".join(skipped[:_SHOWN])} if skipped else {}),
    }


def _finish(store: Store, written: Sequence[Written], made: Manifest) -> None:
    """Write index, footers and manifest, then remove what they do not mention."""
    index, footers = build_index(written)
    store.put(INDEX, index)
    store.put(FOOTERS, footers)
    # What is not there is left out, so that older versions can read a data set of version 1.
    absent = None if made.groups else {"groups"}
    store.put(MANIFEST, made.model_dump_json(indent=1, exclude_none=True, exclude=absent).encode())
    paths = {shard.path for shard, _ in written}
    _remove(store, [key for key in store.list("shards/") if key not in paths])
    _remove(store, store.list("parts/"))


def _remove(store: Store, keys: Iterable[str]) -> None:
    with ThreadPoolExecutor(_DELETIONS) as pool:
        for _ in pool.map(store.delete, keys):
            pass
