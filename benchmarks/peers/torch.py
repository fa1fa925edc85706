"""torch's DataLoader over torchvision's ImageFolder, tensors rather than Pillow images.

The decoder and the transform are those that torchvision recommends, see `Tensors` in decode.py. Workers stay between
epochs, as https://docs.pytorch.org/docs/stable/data.html offers. From S3 by Amazon's S3 Connector for PyTorch, a map
dataset of objects with a transform: https://github.com/awslabs/s3-connector-for-pytorch, "Sample Examples".
"""

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from benchmarks.peers import BATCH, Decoder
from benchmarks.peers.decode import Ours, Tensors


def _path(path: str) -> str:
    return path


def _bytes(path: str) -> bytes:
    return Path(path).read_bytes()


class _Object:
    """An object as a sample: its name is CLASS/ID.jpg."""

    def __init__(self, view: Tensors | Ours) -> None:
        self._view = view

    def __call__(self, reader: Any) -> tuple[Any, int]:
        return self._view(reader.read()), zlib.crc32(reader.key.split("/")[-2].encode())


def _from_s3(source: str, view: Tensors | Ours) -> Any:
    from s3torchconnector import S3ClientConfig, S3MapDataset

    return S3MapDataset.from_prefix(
        f"{source}/",
        region=os.environ.get("AWS_DEFAULT_REGION", "us-east-1"),
        endpoint=os.environ.get("AWS_ENDPOINT_URL"),
        transform=_Object(view),
        s3client_config=S3ClientConfig(force_path_style=True),
    )


def batches(source: str, decoder: Decoder, workers: int) -> Iterator[tuple[Any, Any]]:
    """Endless epochs, each in another order."""
    documented = decoder == "documented"
    view = Tensors() if documented else Ours()
    if source.startswith("s3://"):
        dataset = _from_s3(source, view)
    else:
        dataset = ImageFolder(source, transform=view, loader=_path if documented else _bytes)
    loader = DataLoader(
        dataset, batch_size=BATCH, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=True
    )
    while True:
        yield from loader
