"""The loaders that benchmarks/loader.py compares, each in a module of its own and run in processes of its own.

A module has two functions, but `prepare` only where it has a format of its own:

    prepare(images, folder)              convert the tree `images`, CLASS/ID.jpg, into the loader's own format
    batches(source, decoder, workers)    endless (images, labels): uint8, BATCH images of SIZE x SIZE pixels

`decoder` is "documented", how the loader's documentation decodes and crops, or "ours", our decoder in the loader's own
pipeline. All deliver uint8: where a page ends its transform with ToTensor and Normalize these are left out, because
ours leaves them to the device too. That favours the peers.
"""

from dataclasses import dataclass
from typing import Literal

BATCH, SIZE = 64, 224
Decoder = Literal["documented", "ours"]


@dataclass(frozen=True)
class Peer:
    """A loader.

    Attributes:
        packages: what must be importable.
        data: folder below the scratch folder: one of its own, or that of the images or of ours.
        s3: whether it reads from a server at an address of one's choice, `source` being s3://bucket/prefix; or the
            package that it needs for that.
    """

    packages: tuple[str, ...]
    data: str
    s3: bool | str = False


PEERS = {
    "webdataset": Peer(("webdataset", "torchvision"), "webdataset", s3=True),
    "streaming": Peer(("streaming", "torchvision"), "streaming", s3=True),
    "litdata": Peer(("litdata", "torchvision"), "litdata", s3=True),
    "grain": Peer(("grain", "array_record"), "grain"),
    "spdl": Peer(("spdl.pipeline",), "images"),
    "torch": Peer(("torch", "torchvision"), "images", s3="s3torchconnector"),
    "ray": Peer(("ray.data", "torchvision"), "ray", s3=True),
}
