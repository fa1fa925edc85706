"""WebDataset, as its page on sharding and torch's DataLoader has it: transforms and batches made in the workers.

https://webdataset.github.io/webdataset/sharding/, with resampled shards and a shuffle buffer of 1,000 encoded samples
as in https://github.com/webdataset/webdataset/blob/main/examples/train-resnet50-wds.ipynb. That notebook also mixes the
workers' samples by unbatching, shuffling and batching again, which is left out: it took half as much CPU time again.
The page decodes by Pillow; torchvision's tensors (decode.py) are faster and take its place. S3 is read by `pipe:curl`,
as HTTP is on that page.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import webdataset as wds

from benchmarks.peers import BATCH, Decoder
from benchmarks.peers.decode import Ours, Tensors
from benchmarks.peers.images import files
from benchmarks.peers.s3 import signed

_SHARD_IMAGES = 500
_BUFFER = 1000


def prepare(images: Path, folder: Path) -> None:
    """Tar shards of about 55 MB."""
    with wds.ShardWriter(str(folder / "train-%06d.tar"), maxcount=_SHARD_IMAGES, verbose=0) as writer:
        for path, label in files(images):
            writer.write({"__key__": path.stem, "jpg": path.read_bytes(), "cls": label})


def batches(source: str, decoder: Decoder, workers: int) -> Iterator[tuple[Any, Any]]:
    """Endless: shards are drawn with replacement."""
    if source.startswith("s3://"):
        urls = [f"pipe:curl --silent --fail '{url}'" for url in signed(source, ".tar")]
    else:
        urls = [str(path) for path in sorted(Path(source).glob("*.tar"))]
    dataset = wds.WebDataset(urls, resampled=True, shardshuffle=False, nodesplitter=wds.split_by_node).shuffle(_BUFFER)
    view = Tensors() if decoder == "documented" else Ours()
    dataset = dataset.to_tuple("jpg", "cls").map_tuple(view, int)
    yield from wds.WebLoader(dataset.batched(BATCH), batch_size=None, num_workers=workers)
