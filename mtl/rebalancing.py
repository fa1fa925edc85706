"""Which training rows come how often in an epoch, as `rebalance` in the configuration says.

Frequencies are the manifest's counts; what has to be read are the labels of each row, once when a run starts. Where
there are several workers each reads a part of the shards, and all get the sum. No checksum covers labels alone, so that
what was read must have the manifest's counts.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import numpy.typing as npt

from mtl.config import Config
from mtl.data.keyed import key
from mtl.data.label_columns import shard_classes
from mtl.data.manifest import Index, Manifest
from mtl.data.repeats import F64, I64, Repeats, class_counts, class_factors, edges, resolved, row_factors
from mtl.errors import DataError
from mtl.store import Store


@final
@dataclass(frozen=True)
class Peers:
    """The ranks that read labels together; `sum` gives each of them the sum of their arrays."""

    rank: int
    world_size: int
    sum: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]


_AT_ONCE = 4  # reads for each of loader.io_threads: they take as long as an answer takes to begin

ALONE = Peers(0, 1, lambda values: values)


def rebalanced(config: Config, store: Store, manifest: Manifest, index: Index, number: int, peers: Peers) -> Index:
    """The training index of a data set, with the rows that come more than once; called by all ranks together.

    Args:
        number: of the data set among those of the run.

    Raises:
        StoreError: storage failed.
        DataError: labels are not what was written; on all ranks, or on the one that found it.
    """
    expected, factors = _counts(config, manifest), _factors(config, manifest)
    if expected is None or factors is None or factors.max() == 1:
        return index
    columns, seed = _columns(config), key("source", config.seed, number)
    starts = edges(index.rows)
    times = np.zeros(index.images, np.uint8)

    def fill(shard: int) -> I64:
        begin, end = starts[np.searchsorted(index.shard, [shard, shard + 1])].tolist()
        labels = shard_classes(store, manifest, index, shard, columns)
        found = class_counts(labels, len(factors))
        if (len(labels), len(found)) != (end - begin, len(factors)):
            raise _others(
                f"{store.uri}/{index.shard_path[shard]}",
                f"{len(labels)} rows, {len(found)} classes",
                f"{end - begin} rows, {len(factors)} classes",
            )
        times[begin:end] = resolved(row_factors(labels, factors), begin, seed)
        return found

    with ThreadPoolExecutor(_AT_ONCE * config.loader.io_threads, "mtl-labels") as pool:
        ours = pool.map(fill, range(peers.rank, len(index.shard_path), peers.world_size))
        counts = peers.sum(sum(ours, start=np.zeros(len(factors), np.int64)))
    if (counts != expected).any():
        at = int((counts != expected).argmax())
        name = _names(config, manifest)[at]
        raise _others(store.uri, f"{counts[at]} training rows of '{name}'", f"{expected[at]}, as manifest.json says")
    repeats = Repeats.of(peers.sum(times), index.rows)
    return replace(index, rows=repeats.rows, repeats=repeats) if repeats.times.max() > 1 else index


def describe(config: Config, manifest: Manifest, index: Index) -> str:
    """What rebalancing makes of a data set, for people."""
    factors = _factors(config, manifest)
    if factors is None:
        return f"no label of '{config.rebalance.task}': {index.images:,} images, each once an epoch"
    told = f"rebalanced by '{config.rebalance.task}': {index.images:,} images are {index.rows.sum():,} an epoch"
    at = int(factors.argmax())
    return f"{told}, the rarest class ({_names(config, manifest)[at]}) x {factors[at]:.3g}"


def _columns(config: Config) -> tuple[str, ...]:
    """The label columns of the task, none if nothing is to be rebalanced."""
    return config.tasks[config.rebalance.task].columns if config.rebalance.task is not None else ()


def _counts(config: Config, manifest: Manifest) -> I64 | None:
    """Training rows of each class, or None where nothing is to be rebalanced, or its label is not there."""
    rows, columns = manifest.split("train").labels, _columns(config)
    if len(columns) > 1:
        rows = {name: count for name, count in rows.items() if manifest.labels[name].kind == "binary"}
    histograms = [rows[column].histogram for column in columns if column in rows]
    there = [list(histogram) for histogram in histograms if histogram and any(histogram)]
    if not there or len(there) < len(columns):
        return None
    return np.array(there[0] if len(there) == 1 else [histogram[1] for histogram in there])


def _factors(config: Config, manifest: Manifest) -> F64 | None:
    """How often each class is to come, or None as in `_counts`."""
    its, counts = config.rebalance, _counts(config, manifest)
    if counts is None:
        return None
    labelled = max(manifest.split("train").labels[column].valid for column in _columns(config))
    return class_factors(counts, labelled, its.power, its.threshold, its.cap)


def _others(where: str, got: str, expected: str) -> DataError:
    return DataError(
        f"The labels at {where} are not those that were written.",
        got=got,
        expected=expected,
        do="write the data set again with jobs/prepare.py --overwrite",
    )


def _names(config: Config, manifest: Manifest) -> tuple[str, ...]:
    first, *others = _columns(config)
    return (first, *others) if others else manifest.labels[first].classes or ("no", "yes")
