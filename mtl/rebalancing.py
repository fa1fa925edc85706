"""Which training rows come how often in an epoch, as `rebalance` in the configuration says.

Frequencies are the manifest's counts; what has to be read are the labels of each row, once when a run starts. Where
there are several workers each reads a part of the shards, and all get the sum.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import numpy.typing as npt

from mtl.config import Config
from mtl.data.keyed import key
from mtl.data.label_columns import shard_classes
from mtl.data.manifest import Index, Manifest
from mtl.data.repeats import F64, Repeats, class_factors, resolved, row_factors
from mtl.errors import DataError
from mtl.store import Store

U8 = npt.NDArray[np.uint8]


@final
@dataclass(frozen=True)
class Peers:
    """The ranks that read labels together; `sum` gives each of them the sum of their arrays."""

    rank: int
    world_size: int
    sum: Callable[[U8], U8]


_AT_ONCE = 4  # reads for each of loader.io_threads: they take as long as an answer takes to begin

ALONE = Peers(0, 1, lambda times: times)


def rebalanced(config: Config, store: Store, manifest: Manifest, index: Index, number: int, peers: Peers) -> Index:
    """The training index of a data set, with the rows that come more than once; called by all ranks together.

    Args:
        number: of the data set among those of the run.

    Raises:
        StoreError: storage failed.
        DataError: labels are not what was written.
    """
    factors = _factors(config, manifest)
    if factors is None or factors.max() == 1:
        return index
    columns, seed = _columns(config), key("source", config.seed, number)
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(index.rows)])
    times = np.zeros(index.images, np.uint8)

    def fill(shard: int) -> None:
        begin, end = starts[np.searchsorted(index.shard, [shard, shard + 1])].tolist()
        labels = shard_classes(store, manifest, index, shard, columns)
        if len(labels) != end - begin:
            raise DataError(
                f"{store.uri}/{index.shard_path[shard]} is not what index.parquet says.",
                got=f"{len(labels)} rows",
                expected=f"{end - begin}",
                do="write the data set again with jobs/prepare.py --overwrite",
            )
        times[begin:end] = resolved(row_factors(labels, factors), begin, seed)

    with ThreadPoolExecutor(_AT_ONCE * config.loader.io_threads, "mtl-labels") as pool:
        list(pool.map(fill, range(peers.rank, len(index.shard_path), peers.world_size)))
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


def _factors(config: Config, manifest: Manifest) -> F64 | None:
    """How often each class is to come, or None where nothing is to be rebalanced, or its label is not there."""
    its, rows = config.rebalance, manifest.split("train").labels
    there = [rows[column] for column in _columns(config) if column in rows]
    histograms = [list(count.histogram) for count in there if count.histogram]
    labelled = max((count.valid for count in there), default=0)
    if not labelled or len(histograms) < len(_columns(config)):
        return None
    of_class = histograms[0] if len(histograms) == 1 else [histogram[1] for histogram in histograms]
    return class_factors(of_class, labelled, its.power, its.threshold, its.cap)


def _names(config: Config, manifest: Manifest) -> tuple[str, ...]:
    first, *others = _columns(config)
    return (first, *others) if others else manifest.labels[first].classes or ("no", "yes")
