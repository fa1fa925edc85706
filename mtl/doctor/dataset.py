"""Checks of the data set: is it whole, do its labels fit the tasks, does its order fit the memory."""

import time
from collections.abc import Iterator

from mtl.config import Task
from mtl.config_order import Rebalance
from mtl.data.manifest import MANIFEST, Index, LabelCount, Manifest
from mtl.data.reader import Reader
from mtl.data.shards import check_shards
from mtl.doctor.case import Case
from mtl.errors import MtlError, NotFound, StoreError
from mtl.findings import Finding
from mtl.label_checks import check_mixed, check_task
from mtl.mixing import classes, shares, training_sets
from mtl.preflight import check_order
from mtl.store import Store, open_store
from mtl.store.identity import identity

_SPLITS = ("train", "val", "test")


def data(case: Case) -> Iterator[Finding]:
    """The manifest, the shards, and one row group of each split, read and verified; in a mixture of each data set."""
    case.manifest = None
    for address, splits in _addresses(case).items():
        store = open_store(address)
        manifest = Manifest.load(store)
        for split in splits:
            manifest.split(split)
        case.manifest = case.manifest or manifest
        yield _read(store, manifest, splits)


def _addresses(case: Case) -> dict[str, tuple[str, ...]]:
    """The data sets, the first one first, and which of their splits are read."""
    found: dict[str, tuple[str, ...]] = {case.config.data: _SPLITS}
    for source in case.config.mixture.values():
        found.setdefault(source.data, ("train",))
    return found


def _read(store: Store, manifest: Manifest, splits: tuple[str, ...]) -> Finding:
    indexes, seconds, size_bytes = Index.load_each(store, splits), 0.0, 0
    check_shards(store, indexes)
    for index in indexes.values():
        began = time.perf_counter()
        Reader(store, index, tuple(manifest.labels), manifest.widths).read(0)
        seconds += time.perf_counter() - began
        size_bytes += int(index.length[0])
    rows = ", ".join(f"{manifest.split(split).rows:,} {split}" for split in splits)
    return Finding(
        "ok",
        "data",
        f"{manifest.name}: {rows}; {size_bytes / 1e6:.1f} MB in {len(splits)} row groups read and verified in "
        f"{seconds:.1f} s, as {identity(store)}",
    )


def data_if_there(case: Case) -> Iterator[Finding]:
    """As `data`, but a data set that is not there is no failure."""
    address = case.config.data
    try:
        for address in _addresses(case):
            open_store(address).stat(MANIFEST)
    except StoreError as error:
        if isinstance(error, NotFound):
            what, mend = f"There is no data set at {address}", "write it: jobs/prepare.py --help"
        else:
            what, mend = error.what.rstrip("."), error.do or ""
        yield Finding("warn", "data", f"{what}: labels and order are not checked.", mend=mend)
        return
    yield from data(case)


def labels(case: Case) -> Iterator[Finding]:
    """Each task against the column that it reads, and the further data sets of a mixture against the first one."""
    if case.manifest is None:
        return
    for name, task in case.config.tasks.items():
        try:
            check_task(name, task, case.manifest, case.config.tasks.get(task.group_of or ""))
        except MtlError as error:
            yield Finding.of("labels", error)
            continue
        counts = {split: _fewest(case.manifest, split, task) for split in _SPLITS}
        classes = len(case.manifest.labels[task.columns[0]].classes or ()) or task.class_count or 0
        told = f"{name}: " + (f"{classes:,} classes; " if classes else "")
        told += ", ".join(f"{n.valid:,} of {n.valid + n.nulls:,} {split}" for split, n in counts.items()) + " labelled"
        if blind := [split for split, count in counts.items() if not count.valid]:
            yield Finding(
                "warn", "labels", told, f"the task has no metrics on {' and '.join(blind)}", "label some rows"
            )
        else:
            yield Finding("ok", "labels", told)

    for other in training_sets(case.config.model_copy(update={"rebalance": Rebalance()}))[1:]:
        try:
            check_mixed(case.config, case.manifest, other.key, other.manifest)
        except MtlError as error:
            yield Finding.of("labels", error)
            continue
        counts = other.manifest.split("train").labels
        columns = dict.fromkeys(column for task in case.config.tasks.values() for column in task.columns)
        told = [f"{counts[name].valid:,} {name}" if name in counts else f"no {name}" for name in columns]
        yield Finding("ok", "labels", f"{other.key}: {', '.join(told)} labelled")


def _fewest(manifest: Manifest, split: str, task: Task) -> LabelCount:
    """The counts of a task's label; of several columns, of the one with the fewest."""
    return min((manifest.split(split).labels[column] for column in task.columns), key=lambda count: count.valid)


def order(case: Case) -> Iterator[Finding]:
    """Steps of an epoch, and the memory that reading takes."""
    if case.manifest is None:
        return
    found, held = check_order(case.config, sets := training_sets(case.config))
    epochs = case.config.epochs
    told = f"{found.steps:,} steps an epoch, {found.steps * epochs:,} in {epochs} epochs; memory: "
    yield Finding("ok", "order", f"{told}{held.describe()}; order {found.order_id}")
    for line in classes(case.config, sets):
        yield Finding("ok", "order", line)
    if case.config.mixture:
        for line in shares(sets, found, found.steps * epochs):
            yield Finding("ok", "order", line)
