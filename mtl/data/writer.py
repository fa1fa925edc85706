"""Writes a data set: many shards at once, nothing twice, and the manifest last.

A plan is a hash of everything that decides the result. Each shard leaves a part in parts/ once it is complete, so a
rerun with the same plan writes only what is missing. Rows lie in the order of a keyed hash of their id: neighbours on
storage have nothing in common.
"""

import math
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import final

import xxhash
from pydantic import ValidationError

from mtl.data.files import SPLITS
from mtl.data.image import BadImage
from mtl.data.manifest import FOOTERS, FORMAT_VERSION, INDEX, MANIFEST, Label, Manifest
from mtl.data.parts import Written, index, manifest
from mtl.data.shard import DEFAULT_LAYOUT, Layout, Part, Shard, stored, whole, write_shard
from mtl.data.source import Example
from mtl.errors import DataError, NotFound
from mtl.progress import Progress
from mtl.store import Store

_STATISTICS_IMAGES = 10_000
_SIZED_IMAGES = 64  # read to estimate how many shards a split needs
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
    _check(examples, labels)
    plan = _plan(name, examples, labels, layout)
    if finished := _finished(store, plan, overwrite):
        return finished
    splits = sorted({example.split for example in examples}, key=SPLITS.index)
    shards = [shard for split in splits for shard in _shards(split, examples, layout)]
    writing = _Writing(store, labels, layout, plan, skip_bad, progress)
    written = writing.write(shards, workers or os.cpu_count() or 1)
    made = manifest(name, labels, written, {**(source or {}), **_recorded(layout, written), "plan": plan})
    _finish(store, written, made)
    return made


def _check(examples: Sequence[Example], labels: dict[str, Label]) -> None:
    counts = Counter(example.split for example in examples)
    if not counts["train"]:
        raise DataError(
            "There is nothing to train on.",
            got=", ".join(f"{n:,} images in {split}" for split, n in counts.items()) or "no images",
            expected="at least one image in the split train",
        )
    ids: set[str] = set()
    for example in examples:
        if example.id in ids:
            raise DataError(f"Two images have the id {example.id}.", expected="ids that occur once")
        ids.add(example.id)
        for name, label in labels.items():
            value = example.labels[name]
            if value is not None and not _fits(value, label):
                raise DataError(
                    f"Label '{name}' of image {example.id} is out of range.",
                    got=value,
                    expected=_range(label),
                )


def _fits(value: float, label: Label) -> bool:
    if whole(label):
        return value == int(value) and 0 <= value < (len(label.classes) if label.classes else 2)
    return math.isfinite(value) and (label.kind == "real" or 0 <= value < 2 * math.pi)


def _range(label: Label) -> str:
    if whole(label):
        return f"a whole number from 0 to {len(label.classes or 'ab') - 1}"
    return "a finite number" if label.kind == "real" else "radians in [0, 2 pi)"


def _plan(name: str, examples: Sequence[Example], labels: dict[str, Label], layout: Layout) -> str:
    """A hash of what decides the result; not of the images' bytes, which would have to be read."""
    kinds = {label: labels[label].model_dump() for label in labels}
    digest = xxhash.xxh3_128(f"{FORMAT_VERSION} {name} {layout} {kinds}".encode())
    for example in sorted(examples, key=lambda example: example.id):
        values = [example.labels[name] for name in labels]
        digest.update(f"{example.id}\0{example.split}\0{values}\n".encode())
    return digest.hexdigest()


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


def _shards(split: str, examples: Iterable[Example], layout: Layout) -> list[Shard]:
    """The shards of one split: all its rows in the order of a keyed hash, cut into equal runs."""
    keyed = ((xxhash.xxh3_64_intdigest(e.id.encode(), seed=layout.seed), e) for e in examples if e.split == split)
    rows = [example for _, example in sorted(keyed, key=lambda pair: (pair[0], pair[1].id))]
    count = max(1, math.ceil(len(rows) * _mean_bytes(rows[:_SIZED_IMAGES], layout) / layout.shard_bytes))
    cuts = [len(rows) * i // count for i in range(count + 1)]
    stride = math.ceil(len(rows) / _STATISTICS_IMAGES)
    return [
        Shard(split, f"{split}-{i:05d}-of-{count:05d}", rows[cuts[i] : cuts[i + 1]], cuts[i], stride)
        for i in range(count)
        if cuts[i] < cuts[i + 1]
    ]


def _mean_bytes(examples: Sequence[Example], layout: Layout) -> float:
    sizes: list[int] = []
    for example in examples:
        with suppress(BadImage):  # reported when its shard is written
            sizes.append(len(stored(example, layout.short_side_px)[0]))
    return sum(sizes) / max(1, len(sizes))


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

    def write(self, shards: Sequence[Shard], workers: int) -> list[Written]:
        """Write what is missing; all `shards` with their parts, less those in which every image was damaged."""
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
        return [(shard, kept[shard.name]) for shard in shards if kept[shard.name].rows]

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


def _recorded(layout: Layout, written: Iterable[Written]) -> dict[str, str]:
    skipped = [line for _, part in written for line in part.skipped]
    return {
        "seed": str(layout.seed),
        **({"short_side_px": str(layout.short_side_px)} if layout.short_side_px else {}),
        **({"skipped": str(len(skipped)), "skipped_first": "; ".join(skipped[:_SHOWN])} if skipped else {}),
    }


def _finish(store: Store, written: Sequence[Written], manifest: Manifest) -> None:
    """Write index, footers and manifest, then remove what they do not mention."""
    rows, footers = index(written)
    store.put(INDEX, rows)
    store.put(FOOTERS, footers)
    store.put(MANIFEST, manifest.model_dump_json(indent=1).encode())
    paths = {shard.path for shard, _ in written}
    _remove(store, [key for key in store.list("shards/") if key not in paths])
    _remove(store, store.list("parts/"))


def _remove(store: Store, keys: Iterable[str]) -> None:
    with ThreadPoolExecutor(_DELETIONS) as pool:
        for _ in pool.map(store.delete, keys):
            pass
