"""What can be checked before torch and Ray are imported: the data set, its labels, the arithmetic, the run's past."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mtl.balancing import address
from mtl.config import Config, Task, parse
from mtl.console import counted
from mtl.data.balance import balances
from mtl.data.footprint import Footprint, evaluation_bytes, footprint
from mtl.data.manifest import Index, Manifest
from mtl.data.mixture import AnyOrder
from mtl.data.order import I64
from mtl.data.shards import check_shards
from mtl.errors import CheckpointError, ConfigError, NotFound, RunError
from mtl.label_checks import check_mixed, check_tasks
from mtl.mixing import DataSet, classes, shares, training_order, training_sets
from mtl.record import Record, read
from mtl.schema import differences
from mtl.store import Store, open_store


@dataclass(frozen=True)
class Plan:
    """What the checks found.

    The first data set, all that are trained on, the order of their training splits, the run's record if it has one, and
    what changed since it began: (old, new) by field.
    """

    manifest: Manifest
    sets: Sequence[DataSet]
    order: AnyOrder
    record: Record | None
    changed: dict[str, tuple[object, object]]
    memory: Footprint

    def describe(self, config: Config) -> list[str]:
        """The arithmetic of the run, for people."""
        order, workers = self.order, world_size(config)
        rows, steps = self.manifest.split("train").rows, order.steps * config.epochs
        return [
            f"data     {self.manifest.name}: {rows:,} training images, {len(self.manifest.labels)} labels",
            *(f"mixture  {line}" for line in shares(self.sets, order, steps) if config.mixture),
            *(f"classes  {line}" for line in classes(config, self.sets)),
            f"batch    {config.global_batch} = {counted(workers, 'worker')} x {config.global_batch / workers:g}; "
            f"{counted(order.steps, 'step')} an epoch, {steps:,} in all",
            *(f"rate     {scaled}" for scaled in [config.optimizer.scaled(config.global_batch)] if scaled),
            f"order    {order.order_id}: {counted(order.lanes, 'lane')}, "
            f"{balances(order.lanes, workers, worker_counts(config))}",
            *(f"elastic  {line}" for line in _elastic(config)),
            f"memory   {self.memory.describe()}, for reading and decoding",
            *(f"changed  {name}: {old} -> {new}" for name, (old, new) in self.changed.items()),
        ]


def check(config: Config) -> Plan:
    """Everything that can be known without a cluster.

    Raises:
        DataError, ConfigError, CheckpointError, StoreError: the first thing that is wrong, within seconds.
    """
    address(config.balancing.method)
    sets = training_sets(config)
    manifest = sets[0].manifest
    for split in ("train", "val", "test"):
        manifest.split(split)
    check_tasks(config, manifest)
    for other in sets[1:]:
        check_mixed(config, manifest, other.key, other.manifest)
    evaluated = Index.load_each(sets[0].store, ("val", "test"))
    for its in sets:
        check_shards(its.store, {"train": its.index, **(evaluated if its is sets[0] else {})})
    order, held = check_order(config, sets)
    run = open_store(config.storage).child(config.name)
    record = read(run)
    unfinished = record is not None and record.status != "finished"
    changed = check_resumable(run, config) if unfinished else {}
    return Plan(manifest, sets, order, record, changed, held)


def check_order(config: Config, sets: Sequence[DataSet]) -> tuple[AnyOrder, Footprint]:
    """The order in which `sets` are trained on, and the memory that reading them takes on one worker.

    Raises:
        ConfigError: one is smaller than its part of a step, or the memory is more than allowed.
    """
    order, manifest = training_order(config, sets), sets[0].manifest
    lengths, limit = np.concatenate([its.index.length for its in sets]), config.loader.memory_gb * 1e9
    workers = fewest_workers(config)
    images = sum(its.index.images for its in sets)
    held = _footprint(config, manifest, order, lengths, images, workers)
    if held.total > limit:
        sizes = ((n, _footprint(config, manifest, order, lengths, images, n).total) for n in worker_counts(config))
        enough = next((n for n, size in sizes if size <= limit), None)
        raise ConfigError(
            "The read path does not fit into memory.",
            got=f"{held.describe()}, of {workers}",
            expected=f"at most loader.memory_gb = {config.loader.memory_gb}",
            do="lower order.block_row_groups or loader.prefetch_mb, set loader.memory to none, "
            f"{f'use {enough} workers, ' if enough else ''}or raise loader.memory_gb",
        )
    return order, held


def _footprint(
    config: Config, manifest: Manifest, order: AnyOrder, lengths: I64, images: int, workers: int
) -> Footprint:
    ahead = {
        "prefetch_batches": config.loader.prefetch_batches,
        "prefetch_bytes": int(config.loader.prefetch_mb * 1e6),
    }
    training = footprint(
        order,
        lengths,
        workers,
        size_px=config.augment.size_px,
        label_entries=sum(_entries(task, manifest) for task in config.tasks.values()),
        memory=config.loader.memory,
        images=images,
        **ahead,
    )
    evaluation = evaluation_bytes(
        order,
        lengths,
        workers,
        size_px=config.augment.evaluated_px,
        split_bytes=max((split.bytes for name, split in manifest.splits.items() if name != "train"), default=0),
        **ahead,
    )
    return replace(training, evaluation=evaluation)


def _entries(task: Task, manifest: Manifest) -> int:
    """Numbers in one label of a task."""
    label = manifest.labels[task.columns[0]]
    lists = label.kind in ("set", "vector", "soft")
    return len(label.classes or "a") if lists else len(task.columns)


@dataclass(frozen=True)
class SavedRun:
    """A run that has committed, and the data set to evaluate it on."""

    config: Config
    record: Record
    store: Store
    data: Store
    manifest: Manifest


def check_saved(uri: str, split: str, data: str | None = None) -> SavedRun:
    """The run at `uri`, if it can be evaluated on `split`.

    Args:
        data: another address of the data set than the run's own.

    Raises:
        RunError: there is no run, or it has not committed yet.
        DataError, ConfigError: the data set or the split is missing, or does not fit the run's tasks.
        StoreError: storage can not be read.
    """
    store = open_store(uri)
    record = read(store)
    try:
        config = parse(store.get("config.yaml").decode())
    except NotFound as error:
        raise RunError(
            f"There is no run at {uri}.",
            got=error.what,
            expected="a folder that holds run.json and config.yaml",
            do="name the folder that jobs/train.py printed: STORAGE/NAME",
        ) from error
    if record is None or not record.checkpoints:
        raise RunError(
            f"The run at {uri} has no commit yet.",
            got="no checkpoint in run.json",
            expected="at least one",
            do="train it further: jobs/train.py commits at the end of each epoch",
        )
    source = open_store(data or config.data)
    manifest = Manifest.load(source)
    manifest.split(split)
    check_tasks(config, manifest)
    check_shards(source, Index.load_each(source, (split,)))
    return SavedRun(config, record, store, source, manifest)


def world_size(config: Config) -> int:
    """The number of workers; in this process, what torchrun said."""
    return config.resources.workers if config.runtime == "ray" else int(os.environ.get("WORLD_SIZE", "1"))


def fewest_workers(config: Config) -> int:
    """The number of workers that the run may go on with, at least."""
    return (config.resources.min_workers if config.runtime == "ray" else None) or world_size(config)


def worker_counts(config: Config) -> list[int]:
    """The numbers of workers on which the run may go on, ascending: at most one a lane."""
    groups = config.model.batch_norm_groups if config.model.batch_norm == "groups" else 0
    return [n for n in range(1, config.order.lanes + 1) if groups % n == 0]


def check_resumable(run: Store, config: Config) -> dict[str, tuple[object, object]]:
    """Compare with the configuration that the run at `run` was last started with.

    Returns:
        What differs and may: (old, new) by field; not the addresses of run and data set.

    Raises:
        CheckpointError: a field that decides the result differs; the difference is shown.
    """
    try:
        saved = parse(run.get("config.yaml").decode())
    except NotFound:
        return {}
    changed = differences(saved, config)
    fatal = {name: (old, new) for name, (role, old, new) in changed.items() if role == "identity"}
    if fatal:
        width = max(map(len, fatal))
        rows = [f"{name:<{width}}  {old} -> {new}" for name, (old, new) in fatal.items()]
        raise CheckpointError(
            f"The run '{config.name}' was started with another configuration.",
            got=("\n" + " " * 12).join(rows),
            expected="the same values: these decide the result",
            do="choose another --name, or repeat the first configuration "
            f"(jobs/train.py --config {run.uri}/config.yaml)",
        )
    return {name: (old, new) for name, (_, old, new) in changed.items() if not _is_address(name)}


def _elastic(config: Config) -> Iterator[str]:
    least, most = fewest_workers(config), world_size(config)
    if least < most:
        local = config.global_batch // config.order.lanes * -(-config.order.lanes // least)
        passes = -(-local // (config.max_micro_batch or local))
        yield (
            f"{least} to {counted(most, 'worker')}, {config.global_batch} samples a step with any; "
            f"with {least} in {counted(passes, 'part')} each"
        )


def _is_address(field: str) -> bool:
    return field in ("name", "data", "storage") or (field.startswith("mixture.") and field.endswith(".data"))
