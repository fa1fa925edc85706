"""Ray Data over Parquet, as its guides for images and for PyTorch have it: one function of rows, torch batches.

https://docs.ray.io/en/latest/data/working-with-images.html ("Transforming images": `map` with a torchvision transform)
and https://docs.ray.io/en/latest/data/working-with-pytorch.html (`iter_torch_batches`). Blocks are
smaller than the default of 128 MB, which an epoch here would have too few of to be measured while it runs.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import ray
import ray.data

from benchmarks.peers import BATCH, Decoder
from benchmarks.peers.decode import Ours, pillow_transform
from benchmarks.peers.images import files
from benchmarks.peers.s3 import credentials, split

_FILE_IMAGES = 150  # about 16 MB
_BLOCK_BYTES = 16 << 20
_STORE_BYTES = 2 << 30


def prepare(images: Path, folder: Path) -> None:
    """Parquet files of encoded images and labels, uncompressed."""
    found = files(images)
    for at in range(0, len(found), _FILE_IMAGES):
        rows = [{"image": path.read_bytes(), "label": label} for path, label in found[at : at + _FILE_IMAGES]]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"train-{at:06d}.parquet", compression="none")


class _View:
    def __init__(self, decoder: Decoder) -> None:
        self._transform = self._pillow if decoder == "documented" else Ours()
        self._documented = pillow_transform()

    def _pillow(self, data: bytes) -> np.ndarray:
        return np.asarray(self._documented(PIL.Image.open(io.BytesIO(data)).convert("RGB")))

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"image": self._transform(row["image"]), "label": row["label"]}


def batches(source: str, decoder: Decoder, workers: int) -> Iterator[tuple[Any, Any]]:
    """Endless epochs, the files in another order each."""
    ray.init(
        address="local",  # never somebody's cluster
        num_cpus=workers,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=_STORE_BYTES,
        logging_level="error",
    )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars, context.target_max_block_size = False, _BLOCK_BYTES
    filesystem, path = None, source
    if source.startswith("s3://"):
        found = credentials()
        endpoint = urlsplit(found["endpoint"])
        filesystem = pyarrow.fs.S3FileSystem(
            access_key=found["access_key"],
            secret_key=found["secret_key"],
            endpoint_override=endpoint.netloc or None,
            scheme=endpoint.scheme or "https",
        )
        path = "/".join(split(source))
    rows = ray.data.read_parquet(path, filesystem=filesystem, columns=["image", "label"], shuffle="files")
    dataset = rows.map(_View(decoder))
    while True:
        for batch in dataset.iter_torch_batches(batch_size=BATCH, drop_last=True):
            yield batch["image"], batch["label"]
