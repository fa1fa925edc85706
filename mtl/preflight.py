"""What can be checked before torch and Ray are imported: the data set, its labels, the arithmetic, the run's past."""

import os
from dataclasses import dataclass

import numpy as np

from mtl.config import Config, Task, parse
from mtl.console import counted
from mtl.data.manifest import Index, LabelKind, Manifest
from mtl.data.order import Order
from mtl.errors import CheckpointError, ConfigError, DataError, NotFound, RunError
from mtl.record import Record, read
from mtl.schema import differences
from mtl.store import Store, open_store

_FITS: dict[str, tuple[LabelKind, ...]] = {
    "multiclass": ("class",),
    "binary": ("binary", "class"),
    "circular": ("angle",),
    "regression": ("real", "angle"),
}


@dataclass(frozen=True)
class Plan:
    """What the checks found.

    The data set, the order of its training split, the run's record if it has one, and what changed since it began:
    (old, new) by field.
    """

    manifest: Manifest
    order: Order
    record: Record | None
    changed: dict[str, tuple[object, object]]
    resident_bytes: int
    balance: float

    def describe(self, config: Config) -> list[str]:
        """The arithmetic of the run, for people."""
        order, workers = self.order, world_size(config)
        return [
            f"data     {self.manifest.name}: {order.n:,} training images, {len(self.manifest.labels)} labels",
            f"batch    {config.global_batch} = {counted(workers, 'worker')} x {config.global_batch / workers:g}; "
            f"{counted(order.steps, 'step')} an epoch, {order.steps * config.epochs:,} in all",
            f"order    {order.order_id}: {counted(order.lanes, 'lane')}, balance {self.balance:.0%}, "
            f"read-ahead at most {self.resident_bytes / 1e6:,.1f} MB a worker",
            *(f"changed  {name}: {old} -> {new}" for name, (old, new) in self.changed.items()),
        ]


def check(config: Config) -> Plan:
    """Everything that can be known without a cluster.

    Raises:
        DataError, ConfigError, CheckpointError, StoreError: the first thing that is wrong, within seconds.
    """
    store = open_store(config.data)
    manifest = Manifest.load(store)
    for split in ("train", "val", "test"):
        manifest.split(split)
    for name, task in config.tasks.items():
        check_task(name, task, manifest)
    order, resident = check_order(config, manifest, store)
    run = open_store(config.storage).child(config.name)
    record = read(run)
    unfinished = record is not None and record.status != "finished"
    changed = check_resumable(run, config) if unfinished else {}
    return Plan(manifest, order, record, changed, resident, _balance(config))


def check_order(config: Config, manifest: Manifest, store: Store) -> tuple[Order, int]:
    """The order of the training split, and the bytes that its read-ahead holds at most on one worker.

    Raises:
        ConfigError: an epoch has no step, or the read-ahead is larger than allowed.
    """
    order = training_order(config, manifest, store)
    if order.steps == 0:
        raise ConfigError(
            "The training split is smaller than one global batch.",
            got=f"{order.n} rows",
            expected=f"at least global_batch = {config.global_batch}",
            do="lower --global-batch, or set --order.keep-tail",
        )
    resident = _resident_bytes(config, store, order)
    if resident > config.loader.memory_gb * 1e9:
        raise ConfigError(
            "The read-ahead does not fit into memory.",
            got=f"{resident / 1e9:.1f} GB on one of {counted(world_size(config), 'worker')}",
            expected=f"at most loader.memory_gb = {config.loader.memory_gb}",
            do="lower order.block_row_groups, use more workers, or raise loader.memory_gb",
        )
    return order, resident


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
    for name, task in config.tasks.items():
        check_task(name, task, manifest)
    return SavedRun(config, record, store, source, manifest)


def world_size(config: Config) -> int:
    """The number of workers; in this process, what torchrun said."""
    return config.resources.workers if config.runtime == "ray" else int(os.environ.get("WORLD_SIZE", "1"))


def training_order(config: Config, manifest: Manifest, store: Store) -> Order:
    """The order of the training split."""
    return Order(
        Index.load(store, "train").rows,
        fingerprint=manifest.fingerprint,
        split="train",
        seed=config.seed,
        lanes=config.order.lanes,
        block_row_groups=config.order.block_row_groups,
        global_batch=config.global_batch,
        keep_tail=config.order.keep_tail,
    )


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
    return {name: (old, new) for name, (_, old, new) in changed.items() if name not in ("name", "data", "storage")}


def check_task(name: str, task: Task, manifest: Manifest) -> None:
    """Compare a task with the label column that it reads.

    Raises:
        DataError: the column is missing, holds ids out of range, or no label at all in training.
        ConfigError: its kind or its number of classes does not fit.
    """
    label = manifest.labels.get(task.label)
    if label is None:
        raise DataError(
            f"Task '{name}' needs a label column that the data set does not have.",
            got=task.label,
            expected=f"one of {', '.join(manifest.labels)}",
            do=f"set --tasks.{name}.label, or add the column to the data set",
        )
    if label.kind not in _FITS[task.kind]:
        raise ConfigError(
            f"Task '{name}' is of kind {task.kind}, which does not fit its label '{task.label}'.",
            got=f"a label of kind {label.kind}",
            expected=f"kind {' or '.join(_FITS[task.kind])}",
            do=f"set --tasks.{name}.kind",
        )
    classes = len(label.classes or ())
    wanted = 2 if task.kind == "binary" else task.classes or classes
    if label.classes is not None and classes != wanted:
        raise ConfigError(
            f"Task '{name}' and its label '{task.label}' differ in the number of classes.",
            got=f"{wanted} in the configuration",
            expected=f"{classes} in the data set ({', '.join(label.classes[:12])}{', ...' if classes > 12 else ''})",
            do=f"leave tasks.{name}.classes out, or mend the data set",
        )
    top = classes if label.classes is not None else 2
    for split_name, split in manifest.splits.items():
        count = split.labels[task.label]
        if label.kind in ("class", "binary") and count.valid and not (0 <= (count.low or 0) <= (count.high or 0) < top):
            raise DataError(
                f"Label '{task.label}' holds class ids out of range in split '{split_name}'.",
                got=f"ids from {count.low:g} to {count.high:g}",
                expected=f"0 to {top - 1}",
                do="write the data set again with jobs/prepare.py",
            )
        if split_name == "train" and not count.valid:
            raise DataError(
                f"No row of the training split has the label '{task.label}' of task '{name}'.",
                got=f"{count.nulls} rows, all without it",
                expected="at least one row with it",
                do="remove the task, or label some rows",
            )


def _resident_bytes(config: Config, store: Store, order: Order) -> int:
    """At most: two blocks a lane, of the largest row groups, on the worker with most lanes."""
    length = np.sort(Index.load(store, "train").length)[::-1]
    lanes = -(-order.lanes // world_size(config))
    overlap = 2  # a lane's segment may begin and end within a row group
    groups = -(-len(length) // order.lanes) + overlap
    block = min(order.block_row_groups or groups, groups)
    return min(2 * lanes * int(length[:block].sum()), 2 * int(length.sum()))


def _balance(config: Config) -> float:
    lanes, workers = config.order.lanes, world_size(config)
    return lanes / (workers * -(-lanes // workers))
