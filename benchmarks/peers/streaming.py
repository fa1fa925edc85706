"""MosaicML Streaming, as its quick start has it: a transform in __getitem__ and torch's DataLoader.

https://docs.mosaicml.com/projects/streaming/en/stable/getting_started/quick_start.html and, for the transform in
__getitem__, .../getting_started/user_guide.html; all options of the shuffle are the defaults. Its `jpeg` columns go to
Pillow; torchvision's tensors (decode.py) are faster and take its place, so the column is `bytes`. S3_ENDPOINT_URL:
.../how_to_guides/configure_cloud_storage_credentials.html.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from streaming import MDSWriter, StreamingDataset
from streaming.base.util import clean_stale_shared_memory
from torch.utils.data import DataLoader

from benchmarks.peers import BATCH, Decoder
from benchmarks.peers.decode import Ours, Tensors
from benchmarks.peers.images import files


class _Images(StreamingDataset):
    def __init__(self, decoder: Decoder, **keywords: Any) -> None:
        super().__init__(**keywords)
        self._view = Tensors() if decoder == "documented" else Ours()

    def __getitem__(self, at: Any) -> Any:
        sample = super().__getitem__(at)
        return self._view(sample["image"]), sample["label"]


def prepare(images: Path, folder: Path) -> None:
    """MDS shards of the default 64 MB."""
    with MDSWriter(out=str(folder), columns={"image": "bytes", "label": "int"}) as writer:
        for path, label in files(images):
            writer.write({"image": path.read_bytes(), "label": label})


def batches(source: str, decoder: Decoder, workers: int) -> Iterator[tuple[Any, Any]]:
    """Endless epochs. From S3, shards are kept in a new folder: only the first epoch measures S3."""
    clean_stale_shared_memory()  # of an earlier process that was killed
    where: dict[str, Any] = {"local": source}
    if source.startswith("s3://"):
        os.environ["S3_ENDPOINT_URL"] = os.environ["AWS_ENDPOINT_URL"]
        where = {"remote": source, "local": tempfile.mkdtemp(dir=os.environ.get("BENCH_CACHE"))}
    dataset = _Images(decoder, **where, shuffle=True, batch_size=BATCH)
    loader = DataLoader(dataset, batch_size=BATCH, num_workers=workers, drop_last=True, persistent_workers=True)
    while True:
        yield from loader
