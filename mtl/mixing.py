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
from mtl.rebalancing import ALONE, Peers, describe, rebalanced
from mtl.store import Store, open_store


@dataclass(frozen=True)
class DataSet:
    """A data set, `index` being that of the split that is read; `key` is its name in the configuration."""

    key: str
    store: Store
    manifest: Manifest
    index: Index
    weight: float = 1.0

    @property
    def fingerprint(self) -> str:
        """That of what is read: of images and row layout, and of how often rows come, where some come again."""
        repeats = self.index.repeats
        return self.manifest.fingerprint + (f"+{repeats.digest}" if repeats else "")


def training_sets(config: Config, peers: Peers = ALONE) -> list[DataSet]:
    """The data sets of a run, with the index of their training split, rebalanced; the first one first.

    Args:
        peers: the ranks that call this together, if there are others.

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
        index = rebalanced(config, store, manifest, Index.load(store, "train"), len(found), peers)
        found.append(DataSet(key, store, manifest, index, weight))
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
            fingerprint=first.fingerprint,
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
        [Source(its.index.rows, its.fingerprint, its.weight) for its in sets],
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
            f"{its.key}: {its.manifest.name}, {its.index.images:,} images, weight {its.weight:g}; "
            f"{part.lanes} of {order.lanes} lanes, {part.lanes / order.lanes:.1%} of each batch; "
            f"{steps / part.steps:.2f} epochs in all"
        )


def classes(config: Config, sets: Sequence[DataSet]) -> Iterator[str]:
    """A line for each data set that says how its classes are rebalanced; none where they are not asked to be."""
    for its in sets if config.rebalance.task is not None else ():
        name = f"{its.key}: " if config.mixture else ""
        yield name + describe(config, its.manifest, its.index)
