"""Whether the shards of a data set are what its index says, without reading them."""

from collections.abc import Mapping

from mtl.data.manifest import Index
from mtl.errors import DataError
from mtl.store import Store


def check_shards(store: Store, indexes: Mapping[str, Index]) -> None:
    """Compare every shard of some splits, its presence and its size, with a listing: a request for each thousand.

    Raises:
        DataError: one is missing, or has another size.
        StoreError: storage can not be read.
    """
    stored = store.sizes("shards/")
    for split, index in indexes.items():
        expected = dict(zip(index.shard_path, index.shard_bytes.tolist(), strict=True))
        wrong = [path for path, size in expected.items() if stored.get(path) != size]
        if wrong:
            first, got = wrong[0], stored.get(wrong[0])
            raise DataError(
                f"{len(wrong)} of the {len(expected)} shards of split '{split}' are not what was written: {store.uri}.",
                got=f"{first}: {'missing' if got is None else f'{got:,} bytes'}",
                expected=f"{expected[first]:,} bytes",
                do="copy the data set again, or write it again: jobs/prepare.py",
            )
