"""LitData, as its README has it: `optimize` with typed JPEG leaves, StreamingDataset with a transform in __getitem__.

https://github.com/Lightning-AI/litData/blob/main/README.md, "Optimize for maximum performance", "Use any data
transforms", "Optimize images as JPEG" (`Image(path=...)`); torchvision decodes the leaves to uint8 tensors. S3 by
`storage_options`. Our decoder gets the stored bytes by a serializer, which the README offers for custom leaves.
"""

import tempfile
from collections.abc import Iterator
from os import cpu_count, environ
from pathlib import Path
from typing import Any

import litdata
from litdata.streaming import downloader
from litdata.streaming.serializers import ImageSerializer

from benchmarks.peers import BATCH, Decoder
from benchmarks.peers.decode import Ours, tensor_transform
from benchmarks.peers.images import files
from benchmarks.peers.s3 import credentials


class _Images(litdata.StreamingDataset):
    def __init__(self, decoder: Decoder, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._transform = tensor_transform() if decoder == "documented" else Ours()

    def __getitem__(self, index: Any) -> Any:
        sample = super().__getitem__(index)
        return self._transform(sample["image"]), sample["label"]


class _Encoded(ImageSerializer):
    """Leaves as they are stored."""

    def deserialize(self, data: bytes) -> Any:
        return data


def _sample(file: tuple[str, int]) -> dict[str, Any]:
    path, label = file
    return {"image": litdata.Image(path=path), "label": label}


def prepare(images: Path, folder: Path) -> None:
    """Chunks of the default 64 MB."""
    litdata.optimize(
        fn=_sample,
        inputs=[(str(path), label) for path, label in files(images)],
        output_dir=str(folder),
        num_workers=cpu_count() or 1,
        chunk_bytes="64MB",
        verbose=False,
    )


def batches(source: str, decoder: Decoder, workers: int) -> Iterator[tuple[Any, Any]]:
    """Endless epochs. From S3, chunks are kept in a new folder: only the first epoch measures S3."""
    keywords: dict[str, Any] = {"serializers": {"image": _Encoded()}} if decoder == "ours" else {}
    if source.startswith("s3://"):
        found = credentials()
        if found["endpoint"].startswith(
            "http://"
        ):  # obstore refuses it unless told, and LitData has no option for that
            downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = "true"
        keywords |= {
            "cache_dir": tempfile.mkdtemp(dir=environ.get("BENCH_CACHE")),
            "storage_options": {
                "aws_access_key_id": found["access_key"],
                "aws_secret_access_key": found["secret_key"],
                "endpoint_url": found["endpoint"],
            },
        }
    dataset = _Images(decoder, source, shuffle=True, drop_last=True, **keywords)
    loader = litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, drop_last=True)
    while True:
        yield from loader
