"""torch's DataLoader over torchvision's ImageFolder, tensors rather than Pillow images.

The decoder and the transform are those that torchvision recommends, see `Tensors` in decode.py. Workers stay between
epochs, as https://docs.pytorch.org/docs/stable/data.html offers.
"""

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


def batches(source: str, decoder: Decoder, workers: int) -> Iterator[tuple[Any, Any]]:
    """Endless epochs, each in another order."""
    documented = decoder == "documented"
    dataset = ImageFolder(
        source,
        transform=Tensors() if documented else Ours(),
        loader=_path if documented else _bytes,
    )
    loader = DataLoader(
        dataset, batch_size=BATCH, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=True
    )
    while True:
        yield from loader
