"""The data sets that a run trains on, and the order that they have together.

The first one, `data`, also says what labels mean: their classes, ranges and counts. An epoch has as many steps as it
has by itself, so schedules and evaluations do not depend on what it is mixed with.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mtl.config import Config
from mtl.data.manifest import Index, Manifest
from mtl.data.mixture import AnyOrder, Mixture, Source, apportion
from mtl.data.order import Order
from mtl.errors import ConfigError
from mtl.store import Store, open_store


@dataclass(frozen=True)
class DataSet:
    """A data set, `index` being that of the split that is read; `key` is its name in the configuration."""

    key: str
    store: Store
    manifest: Manifest
    index: Index
    weight: float = 1.0


def training_sets(config: Config) -> list[DataSet]:
    """The data sets of a run, with the index of their training split; the first one first.

    Raises:
        DataError: one is missing, damaged, or has nothing to train on.
        StoreError: storage can not be read.
    """
    sources = [("data", config.data, 1.0)]
    sources += [(f"mixture.{name}", source.data, source.weight) for name, source in config.mixture.items()]
    found: list[DataSet] = []
    for key, address, weight in sources:
        manifest = Manifest.load(store := open_store(address))
        manifest.split("train")
        found.append(DataSet(key, store, manifest, Index.load(store, "train"), weight))
    return found


def training_order(config: Config, sets: Sequence[DataSet]) -> AnyOrder:
    """The order in which `sets`, at least one, are trained on.

    Raises:
        ConfigError: one has fewer rows than a step takes.
    """
    first, order, batch = sets[0], config.order, config.global_batch
    rows = int(first.index.rows.sum())
    if rows < batch and not (order.keep_tail and rows):
        raise ConfigError(
            "The training split is smaller than one global batch.",
            got=f"{rows} rows",
            expected=f"at least global_batch = {batch}",
            do="lower --global-batch" + ("" if config.mixture else ", or set --order.keep-tail"),
        )
    if len(sets) == 1:
        return Order(
            first.index.rows,
            fingerprint=first.manifest.fingerprint,
            split="train",
            seed=config.seed,
            lanes=order.lanes,
            block_row_groups=order.block_row_groups,
            global_batch=batch,
            keep_tail=order.keep_tail,
        )
    for its, share in zip(sets, apportion([its.weight for its in sets], order.lanes), strict=True):
        if its.index.rows.sum() < (least := share * batch // order.lanes):
            raise ConfigError(
                f"The data set {its.manifest.name} ({its.key}) is smaller than its part of one global batch.",
                got=f"{its.index.rows.sum()} rows",
                expected=f"at least {least}: {share} of {order.lanes} lanes, of {batch} samples",
                do="lower its weight or --global-batch, or leave it out",
            )
    return Mixture(
        [Source(its.index.rows, its.manifest.fingerprint, its.weight) for its in sets],
        split="train",
        seed=config.seed,
        lanes=order.lanes,
        block_row_groups=order.block_row_groups,
        global_batch=batch,
        steps=rows // batch,
    )


def shares(sets: Sequence[DataSet], order: AnyOrder, steps: int) -> Iterator[str]:
    """A line for each data set of a mixture: its size, its part of each batch, its epochs in `steps` steps."""
    for its, part in zip(sets, order.parts, strict=True):
        yield (
            f"{its.key}: {its.manifest.name}, {part.n:,} images, weight {its.weight:g}; {part.lanes} of {order.lanes} "
            f"lanes, {part.lanes / order.lanes:.1%} of each batch; {steps / part.steps:.2f} epochs in all"
        )
