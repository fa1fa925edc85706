"""Checks of the data set: is it whole, do its labels fit the tasks, does its order fit the memory."""

import time
from collections.abc import Iterator

from mtl.data.manifest import MANIFEST, Index, Manifest
from mtl.data.reader import Reader
from mtl.doctor.case import Case
from mtl.errors import DataError, MtlError, NotFound, StoreError
from mtl.findings import Finding
from mtl.preflight import check_order, check_task
from mtl.store import open_store
from mtl.store.identity import identity

_SPLITS = ("train", "val", "test")


def data(case: Case) -> Iterator[Finding]:
    """The manifest, the shards, and one row group of each split, read and verified."""
    store = open_store(case.config.data)
    manifest = Manifest.load(store)
    for split in _SPLITS:
        manifest.split(split)
    case.manifest = manifest
    stored, seconds, size_bytes = set(store.list("shards/")), 0.0, 0
    for split in _SPLITS:
        index = Index.load(store, split)
        missing = [path for path in index.shard_path if path not in stored]
        if missing:
            raise DataError(
                f"{len(missing)} shards of split '{split}' are missing from {store.uri}.",
                got=f"no {missing[0]}",
                expected=f"{len(index.shard_path)} shards",
                do="copy the data set again, or write it again: jobs/prepare.py",
            )
        began = time.perf_counter()
        Reader(store, index, tuple(manifest.labels)).read(0)
        seconds += time.perf_counter() - began
        size_bytes += int(index.length[0])
    rows = ", ".join(f"{manifest.split(split).rows:,} {split}" for split in _SPLITS)
    yield Finding(
        "ok",
        "data",
        f"{manifest.name}: {rows}; {size_bytes / 1e6:.1f} MB in {len(_SPLITS)} row groups read and verified in "
        f"{seconds:.1f} s, as {identity(store)}",
    )


def data_if_there(case: Case) -> Iterator[Finding]:
    """As `data`, but a data set that is not there is no failure."""
    try:
        open_store(case.config.data).stat(MANIFEST)
    except StoreError as error:
        if isinstance(error, NotFound):
            what, mend = f"There is no data set at {case.config.data}", "write it: jobs/prepare.py --help"
        else:
            what, mend = error.what.rstrip("."), error.do or ""
        yield Finding("warn", "data", f"{what}: labels and order are not checked.", mend=mend)
        return
    yield from data(case)


def labels(case: Case) -> Iterator[Finding]:
    """Each task against the column that it reads."""
    if case.manifest is None:
        return
    for name, task in case.config.tasks.items():
        try:
            check_task(name, task, case.manifest)
        except MtlError as error:
            yield Finding.of("labels", error)
            continue
        counts = {split: case.manifest.split(split).labels[task.label] for split in _SPLITS}
        classes = len(case.manifest.labels[task.label].classes or ())
        told = f"{name}: " + (f"{classes:,} classes; " if classes else "")
        told += ", ".join(f"{n.valid:,} of {n.valid + n.nulls:,} {split}" for split, n in counts.items()) + " labelled"
        if blind := [split for split, count in counts.items() if not count.valid]:
            yield Finding(
                "warn", "labels", told, f"the task has no metrics on {' and '.join(blind)}", "label some rows"
            )
        else:
            yield Finding("ok", "labels", told)


def order(case: Case) -> Iterator[Finding]:
    """Steps of an epoch, and the memory of the read-ahead."""
    if case.manifest is None:
        return
    found, resident = check_order(case.config, case.manifest, open_store(case.config.data))
    epochs = case.config.epochs
    told = f"{found.steps:,} steps an epoch, {found.steps * epochs:,} in {epochs} epochs; read-ahead of at most "
    yield Finding("ok", "order", f"{told}{resident / 1e6:,.0f} MB a worker; order {found.order_id}")
