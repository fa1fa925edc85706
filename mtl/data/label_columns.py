"""Labels of whole shards, without their images: some hundred bytes of each row group."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mtl.data.columns import array
from mtl.data.manifest import FOOTERS, Index, Manifest
from mtl.data.seekable import Ranged
from mtl.errors import DataError
from mtl.store import Store


def shard_classes(
    store: Store, manifest: Manifest, index: Index, shard: int, columns: tuple[str, ...]
) -> npt.NDArray[np.int64]:
    """The classes of all rows of a shard, in order.

    Args:
        columns: one of kind class, binary or set, or several of kind binary.

    Returns:
        Class ids [n] with -1 for missing; for a set, or several columns, [n, C] of 1 (has it), 0, and -1 (not known).

    Raises:
        StoreError: storage failed.
        DataError: the shard is not what was written.
    """
    path = index.shard_path[shard]
    footer = store.get_range(FOOTERS, int(index.footer_offset[shard]), int(index.footer_length[shard]))
    try:
        metadata = pq.read_metadata(pa.BufferReader(footer))
        file = pq.ParquetFile(Ranged(store, path, int(index.shard_bytes[shard])), metadata=metadata)
        table = file.read(columns=list(columns), use_threads=False)
        made = [array(table[name], manifest.widths.get(name)) for name in columns]
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DataError(
            f"The labels {', '.join(columns)} of {store.uri}/{path} can not be read: {error}",
            do="index, footers and shards contradict each other: write it again with jobs/prepare.py --overwrite",
        ) from error
    labels = made[0] if len(made) == 1 else np.stack(made, axis=1)
    return labels.astype(np.int64, copy=False)
