"""What a data set will hold, before anything is written: checked examples, their order, the cut into shards."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import final

import cv2
import simplejpeg
import xxhash

from mtl.data.example import Example
from mtl.data.files import SPLITS
from mtl.data.image import BadImage, Pixels, decode
from mtl.data.labels import Value
from mtl.data.manifest import Label
from mtl.errors import DataError

_JPEG_QUALITY = 92  # of images that are shrunk
_STATISTICS_IMAGES = 10_000
_ROUNDING = 1e-5  # of a sum of probabilities
_SIZED_IMAGES = 64  # read to estimate how many shards a split needs


@final
@dataclass(frozen=True)
class Layout:
    """What decides the bytes of a data set, beside its examples.

    Attributes:
        seed: of the order of rows.
        shard_bytes, row_group_bytes: aimed at, by the size of the encoded images.
        short_side_px: images with a longer short side are shrunk to it and encoded again; None keeps all as they are.
    """

    seed: int = 0
    shard_bytes: int = 128 << 20
    row_group_bytes: int = 3 << 20
    short_side_px: int | None = None


DEFAULT_LAYOUT = Layout()


@final
@dataclass(frozen=True)
class Shard:
    """A shard to write. Its example number i counts for the statistics if `first + i` is a multiple of `stride`."""

    split: str
    name: str
    examples: Sequence[Example]
    first: int
    stride: int

    @property
    def path(self) -> str:
        """Key of the Parquet file."""
        return f"shards/{self.name}.parquet"

    @property
    def part(self) -> str:
        """Key of the part, written after the file."""
        return f"parts/{self.name}.json"

    def sampled(self, number: int) -> bool:
        """Whether example `number` of this shard counts for the statistics."""
        return self.split == "train" and (self.first + number) % self.stride == 0


def check(examples: Sequence[Example], labels: dict[str, Label]) -> None:
    """Refuse examples that are no data set.

    Raises:
        DataError: none is in the split train, an id occurs twice, or a label is out of range.
    """
    counts = Counter(example.split for example in examples)
    if not counts["train"] or not counts.keys() <= {*SPLITS}:
        raise DataError(
            "There is nothing to train on, or an unknown split.",
            got=", ".join(f"{n:,} images in {split}" for split, n in counts.items()) or "no images",
            expected=f"at least one image in the split train; splits are {', '.join(SPLITS)}",
        )
    ids: set[str] = set()
    for example in examples:
        if example.id in ids:
            raise DataError(f"Two images have the id {example.id}.", expected="ids that occur once")
        ids.add(example.id)
        for name, label in labels.items():
            value = example.labels[name]
            if value is not None and not _fits(value, label):
                raise DataError(
                    f"Label '{name}' of image {example.id} is out of range.",
                    got=value,
                    expected=_range(label),
                )


def _fits(value: Value, label: Label) -> bool:
    classes = len(label.classes or ())
    if isinstance(value, tuple):
        match label.kind:
            case "set":
                places = [-1 - i if i < 0 else i for i in value]
                return all(i == int(i) and 0 <= i < classes for i in places) and len({*places}) == len(places)
            case "vector":
                return len(value) == classes and not any(map(math.isinf, value)) and not all(map(math.isnan, value))
            case _:
                one = abs(sum(value) - 1) <= _ROUNDING
                return label.kind == "soft" and len(value) == classes and min(value) >= 0 and one
    if value is None or not math.isfinite(value):
        return False
    if whole(label):
        return value == int(value) and 0 <= value < (classes or 2)
    return label.kind == "real" or (label.kind == "angle" and 0 <= value < 2 * math.pi)


def _range(label: Label) -> str:
    if whole(label):
        return f"a whole number from 0 to {len(label.classes or 'ab') - 1}"
    entries = len(label.classes or ())
    return {
        "real": "a finite number",
        "angle": "radians in [0, 2 pi)",
        "set": f"ids from 0 to {entries - 1}, or -1 - id of those that are not known, each once",
        "vector": f"{entries} numbers, NaN for those that are not known, but not for all",
        "soft": f"{entries} probabilities, together 1",
    }[label.kind]


def plan_hash(name: str, examples: Sequence[Example], labels: dict[str, Label], layout: Layout) -> str:
    """A hash of what decides the result; not of the images' bytes, which would have to be read."""
    kinds = {label: labels[label].model_dump() for label in labels}
    digest = xxhash.xxh3_128(f"1 {name} {layout} {kinds}".encode())
    for example in sorted(examples, key=lambda example: example.id):
        values = [example.labels[name] for name in labels]
        digest.update(f"{example.id}\0{example.split}\0{values}\n".encode())
    return digest.hexdigest()


def shards(split: str, examples: Iterable[Example], layout: Layout) -> list[Shard]:
    """The shards of one split: its examples in the order of a keyed hash of their id, cut into equal runs.

    Raises:
        DataError: one of the images that are read to estimate their size can not be read.
    """
    keyed = ((xxhash.xxh3_64_intdigest(e.id.encode(), seed=layout.seed), e) for e in examples if e.split == split)
    rows = [example for _, example in sorted(keyed, key=lambda pair: (pair[0], pair[1].id))]
    count = max(1, math.ceil(len(rows) * _mean_bytes(rows[:_SIZED_IMAGES], layout) / layout.shard_bytes))
    cuts = [len(rows) * i // count for i in range(count + 1)]
    stride = math.ceil(len(rows) / _STATISTICS_IMAGES)
    return [
        Shard(split, f"{split}-{i:05d}-of-{count:05d}", rows[cuts[i] : cuts[i + 1]], cuts[i], stride)
        for i in range(count)
        if cuts[i] < cuts[i + 1]
    ]


def _mean_bytes(examples: Sequence[Example], layout: Layout) -> float:
    sizes: list[int] = []
    for example in examples:
        with suppress(BadImage):  # reported when its shard is written
            sizes.append(len(stored(example, layout.short_side_px)[0]))
    return sum(sizes) / max(1, len(sizes))


def stored(example: Example, short_side_px: int | None) -> tuple[bytes, Pixels]:
    """The bytes to store for `example`, and the pixels that it decodes to: uint8 [H, W, 3].

    Raises:
        BadImage: it does not decode.
        DataError: it can not be read.
    """
    data = example.read()
    pixels = decode(data)
    height, width = pixels.shape[:2]
    if short_side_px is None or min(height, width) <= short_side_px:
        return data, pixels
    scale = short_side_px / min(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    data = simplejpeg.encode_jpeg(small, quality=_JPEG_QUALITY, colorspace="RGB", colorsubsampling="420")
    return data, decode(data)


def whole(label: Label) -> bool:
    """Whether the values of `label` are whole numbers."""
    return label.kind in ("class", "binary")
