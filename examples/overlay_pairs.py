"""Pairs of images laid over each other with an offset, one label for each image: the construction of the two-digit
overlay benchmark (Sabour et al. 2017; Sener and Koltun 2018) for any tree of images.

    python examples/overlay_pairs.py cifar10.tar.xz data/overlay-images
    python jobs/prepare.py table data/overlay-images/labels.csv data/overlay --images data/overlay-images
    python jobs/train.py --config examples/overlay.yaml

SRC is SRC/class/image or SRC/{train,val,test}/class/image, a folder or an archive, of images of one size. DEST gets
images/SPLIT/NNNNNN.png and labels.csv with the columns path, split, first and second. Both images of a pair come from
the split that the pair is in.
"""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import PIL.Image
import tyro

from mtl import cli
from mtl.data.example import Example
from mtl.data.files import open_images
from mtl.data.image import decode_into, header
from mtl.data.keyed import key, permutation
from mtl.data.source import carve, image_folder
from mtl.data.transforms import U8
from mtl.errors import DataError
from mtl.progress import Progress

GREY = 128
LABEL = "class"


def overlay(first: U8, second: U8, offset_px: int, share: float) -> U8:
    """`first` [h, w, 3] at the upper left, `second` [h, w, 3] at the lower right of grey [h + offset, w + offset, 3].

    Args:
        share: of `first` where the two meet, in [0, 1]; the rest is of `second`.
    """
    h, w, _ = first.shape
    made = np.full((h + offset_px, w + offset_px, 3), GREY, np.float32)
    made[:h, :w] = first
    made[offset_px:, offset_px:] = second
    meet = slice(offset_px, h), slice(offset_px, w)
    made[meet] = share * first[meet] + (1 - share) * second[: h - offset_px, : w - offset_px]
    return np.rint(made).astype(np.uint8)


def pairs(n: int, size: int, seed: int) -> Iterator[tuple[int, int]]:
    """`n` pairs of different numbers below `size`; every number is as often first, and as often second, as any other,
    to within one."""
    for start in range(0, n, size):
        order = permutation(key("pairs", seed, start), size)
        partner = np.roll(order, 1)
        yield from zip(order[: n - start].tolist(), partner[: n - start].tolist(), strict=True)


def main(
    src: Path,
    dest: Path,
    /,
    train: int = 12_000,
    val: int = 2_000,
    test: int = 4_000,
    offset_px: int = 8,
    share: float = 0.5,
    seed: int = 0,
) -> None:
    """Write DEST.

    Args:
        train, val, test: pairs of each split. Where SRC has no such split, one is carved from its train split.
        offset_px: by how much the second image is shifted, right and down.
        share: of the first image where the two meet; the rest is of the second.
    """
    source = carve(image_folder(open_images(src), LABEL))
    names = source.labels[LABEL].classes
    if names is None or not 0 <= share <= 1:
        raise DataError("Pairs need classes, and a share in [0, 1].", got=f"share {share}, classes {names}")
    with Progress("overlay", train + val + test, "pairs") as progress, _table(dest) as file:
        table, done = csv.writer(file), 0
        table.writerow(("path", "split", "first", "second"))
        for split, n in {"train": train, "val": val, "test": test}.items():
            members = [example for example in source.examples if example.split == split]
            if len(members) < 2:
                raise DataError(f"There are no two images in {split}.", got=f"{len(members)} in {src}")
            (dest / "images" / split).mkdir(parents=True, exist_ok=True)
            for number, both in enumerate(pairs(n, len(members), seed)):
                first, second = (members[at] for at in both)
                path = f"images/{split}/{number:06d}.png"
                made = overlay(_pixels(first), _pixels(second), offset_px, share)
                PIL.Image.fromarray(made).save(dest / path, compress_level=1)
                table.writerow((path, split, *(names[_class(one)] for one in (first, second))))
                done += 1
                progress.update(done)


def _table(dest: Path):
    dest.mkdir(parents=True, exist_ok=True)
    return (dest / "labels.csv").open("w", newline="", encoding="utf-8")


def _class(example: Example) -> int:
    found = example.labels[LABEL]
    assert isinstance(found, int)
    return found


def _pixels(example: Example) -> U8:
    encoded = example.read()
    about = header(encoded)
    made = np.empty((about.height, about.width, 3), np.uint8)
    decode_into(encoded, made)
    return made


if __name__ == "__main__":
    cli.run(lambda: tyro.cli(main, description=__doc__))
