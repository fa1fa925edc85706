"""What a data set is made from: examples in splits, from a tree of images, a table, or the `shapes` generator.

image_folder    SRC/class/image or SRC/{train,val,test}/class/image
table           a CSV with a path, perhaps a split, and any number of labels in each row
shapes          drawings with five labels (mtl.data.shapes)
derive          adds a coarser label to a source
carve           moves part of the train split to new splits
"""

import csv
import posixpath
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import simplejpeg
import xxhash

from mtl.data.derivation import Derivation
from mtl.data.example import Example as Example
from mtl.data.example import Source as Source
from mtl.data.files import SPLITS, Images
from mtl.data.labels import Value, check_name, encode, parse_kinds
from mtl.data.shapes import LABELS as SHAPES_LABELS
from mtl.data.shapes import draw, labels
from mtl.errors import DataError

_SHAPES_SPLITS = {"val": 1 / 14, "test": 1 / 14}
_CARVE_KEY = 0x6361727665  # fixed: which split an image belongs to depends on its id alone
_SHOWN = 5


def image_folder(images: Images, label: str = "class", kind: str = "class") -> Source:
    """The tree `images`, each folder of which is named by the value of its images' label, called `label`.

    Args:
        kind: of the label, as for a table: classes unless told otherwise.

    Raises:
        DataError: there is no image, an image is not in a class, or only some top folders are splits.
    """
    check_name(label)
    if not images.paths:
        raise DataError(f"There is no image in {images.where}.", got=f"{images.ignored} other files")
    tops = {path.partition("/")[0] for path in images.paths if path.count("/") >= 2}
    presplit = bool(tops & {*SPLITS})
    depth = 2 if presplit else 1
    stray = [path for path in images.paths if path.count("/") < depth or (presplit and _part(path, 0) not in SPLITS)]
    if stray:
        raise DataError(
            f"{len(stray)} images in {images.where} are in no class" + (" of a split." if presplit else "."),
            got=", ".join(stray[:_SHOWN]),
            expected="split/class/image, with splits train, val and test" if presplit else "class/image",
            do="move or rename the folders so that every image fits one of the two layouts",
        )
    names = sorted({_part(path, depth - 1) for path in images.paths})
    kinds = parse_kinds([f"{label}={kind}"])
    made, found = encode(label, names, kinds[label], lambda i: f"Folder {names[i]} in {images.where}")
    values: dict[str, dict[str, Value]] = {name: {label: value} for name, value in zip(names, found, strict=True)}
    examples = [
        Example(
            id=path,
            split=_part(path, 0) if presplit else "train",
            labels=values[_part(path, depth - 1)],
            read=partial(images.read, path),
        )
        for path in images.paths
    ]
    notes = (f"{images.ignored} files that are no images are ignored",) if images.ignored else ()
    return Source(examples, {label: made}, presplit, notes)


def table(path: Path, images: Images, kinds: Mapping[str, str] | None = None) -> Source:
    """The rows of the CSV at `path`: column `path` (below `images`), perhaps `split`, and labels.

    Args:
        kinds: of labels, perhaps with names of classes (see `labels.parse_kinds`); those not in it are inferred.

    Raises:
        DataError: a column, row or cell is wrong; the message names file, line and column.
    """
    columns, lines = _read_csv(path)

    def where(column: str, row: int) -> str:
        return f"{path} line {lines[row]}, column {column},"

    paths = [posixpath.normpath(cell) for cell in columns.pop("path")]
    missing = [i for i, at in enumerate(paths) if at not in images]
    if missing:
        raise DataError(
            f"{where('path', missing[0])} and {len(missing) - 1} more rows name images that do not exist.",
            got=", ".join(paths[i] for i in missing[:_SHOWN]),
            expected=f"files below {images.where}, such as {', '.join(images.paths[:2]) or '(it holds no image)'}",
            do="pass the folder or archive that the paths start from: --images",
        )
    splits = columns.pop("split", None)
    for i, split in enumerate(splits or ()):
        if split not in SPLITS:
            raise DataError(f"{where('split', i)} is no split.", got=repr(split), expected=", ".join(SPLITS))
    unknown = [name for name in kinds or () if name not in columns]
    if unknown or not columns:
        raise DataError(
            f"{path} has no label column" + (f" called {', '.join(unknown)}." if unknown else "."),
            got=f"columns {', '.join(['path', *(['split'] if splits else []), *columns])}",
        )
    encoded = {
        name: encode(name, cells, (kinds or {}).get(name), partial(where, name)) for name, cells in columns.items()
    }
    examples = [
        Example(
            id=paths[i],
            split=splits[i] if splits else "train",
            labels={name: values[i] for name, (_, values) in encoded.items()},
            read=partial(images.read, paths[i]),
        )
        for i in range(len(paths))
    ]
    _check_unique(examples, str(path))
    return Source(examples, {name: label for name, (label, _) in encoded.items()}, splits is not None)


def shapes(images: int, seed: int = 0) -> Source:
    """The first `images` drawings of the endless sequence `seed`, as JPEGs; a seventh of them for val and test."""
    ids = [f"{index:07d}.jpg" for index in range(images)]
    split = _carved(ids, _SHAPES_SPLITS)
    examples = [
        Example(
            id=name,
            split=split.get(name, "train"),
            labels=labels(index, seed=seed),
            read=partial(_drawing, index, seed),
        )
        for index, name in enumerate(ids)
    ]
    return Source(examples, SHAPES_LABELS, presplit=True)


def derive(source: Source, derivation: Derivation) -> Source:
    """`source` with one more label; examples of a class that the derivation does not name lack it.

    Raises:
        DataError: the old label does not exist, the new one does, or the derivation names no class of the old one.
    """
    old, new = derivation.old, derivation.new
    if old not in source.labels or new in source.labels:
        raise DataError(
            f"Label '{new}' can not be derived from '{old}': "
            + (f"'{new}' already exists." if old in source.labels else f"there is no '{old}'."),
            got=f"labels {', '.join(source.labels)}",
        )
    label, ids = derivation.apply(source.labels[old])

    def added(labels: Mapping[str, Value]) -> dict[str, Value]:
        value = labels[old]
        return {**labels, new: ids[value] if isinstance(value, int) else None}

    examples = [replace(example, labels=added(example.labels)) for example in source.examples]
    missing = sum(example.labels[new] is None for example in examples)
    note = (
        f"label {new} is derived from {old}: {len(label.classes or ())} classes; "
        f"{ids.count(None)} of {len(ids)} classes of {old} have none, so {missing:,} images lack it"
    )
    unused = sorted(derivation.names.keys() - {*(source.labels[old].classes or ())})
    notes = [note] + ([f"{derivation.file} also names {', '.join(unused[:_SHOWN])}: no class of {old}"] * bool(unused))
    return replace(source, examples=examples, labels={**source.labels, new: label}, notes=(*source.notes, *notes))


def carve(source: Source, shares: Mapping[str, float] | None = None) -> Source:
    """Move about the given shares of the train split to new splits. An image's id alone decides whether it moves.

    Args:
        shares: by name of the new split. By default val and test get 10 % each where the source knows no splits, and
            val gets 5 % where it has none.

    Raises:
        DataError: a share is not in [0, 1), they leave nothing to train on, or a split already exists.
    """
    counts = Counter(example.split for example in source.examples)
    if shares is None:
        shares = {"val": 0.1, "test": 0.1} if not source.presplit else {} if counts["val"] else {"val": 0.05}
    wrong = [name for name in shares if name not in SPLITS[1:] or counts[name]]
    if wrong or any(not 0 <= share < 1 for share in shares.values()) or sum(shares.values()) >= 1:
        raise DataError(
            "The train split can not be carved like this.",
            got=", ".join(f"{name}={share}" for name, share in shares.items())
            + f"; splits that exist: {', '.join(counts)}",
            expected="shares of the train split in [0, 1), together below 1, for val or test where it does not exist",
        )
    split = _carved([example.id for example in source.examples if example.split == "train"], shares)
    moved = Counter(split.values())
    examples = [
        replace(example, split=split[example.id]) if example.split == "train" and example.id in split else example
        for example in source.examples
    ]
    notes = [f"split {name} is carved from train: {moved[name]:,} images ({shares[name]:.3g})" for name in shares]
    return replace(source, examples=examples, notes=(*source.notes, *notes))


def _carved(ids: Iterable[str], shares: Mapping[str, float]) -> dict[str, str]:
    """The split of those `ids` that a split in `shares` takes: by hash, so that more images never move old ones."""
    place = sorted((xxhash.xxh3_64_intdigest(name.encode(), seed=_CARVE_KEY) / 2**64, name) for name in ids)
    wanted = [(name, share) for name, share in shares.items() if share]
    split: dict[str, str] = {}
    low, at = 0.0, 0
    for number, (name, share) in enumerate(wanted, 1):
        low += share
        first, stop = at, len(place) - 1 - len(wanted) + number
        # At least one image for each split and one for train, though none of a few may lie in the interval.
        while at < stop and (place[at][0] < low or at == first):
            split[place[at][1]] = name
            at += 1
    return split


def _drawing(index: int, seed: int) -> bytes:
    return simplejpeg.encode_jpeg(draw(index, seed=seed).image, quality=95, colorspace="RGB", colorsubsampling="444")


def _part(path: str, number: int) -> str:
    return path.split("/")[number]


def _read_csv(path: Path) -> tuple[dict[str, list[str]], list[int]]:
    """The columns of a CSV with stripped cells, and the line that each row ends on."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file, strict=True)
            names = [name.strip() for name in next(rows, list[str]())]
            if "path" not in names or len({*names}) != len(names):
                raise DataError(
                    f"{path} must name its columns in the first line, each once.",
                    got=", ".join(names) or "an empty file",
                    expected="path, split (optional), and a column for each label",
                )
            cells: list[list[str]] = []
            lines: list[int] = []
            for row in rows:
                if not row:
                    continue
                if len(row) != len(names):
                    raise DataError(
                        f"{path} line {rows.line_num} has {len(row)} cells.",
                        expected=f"{len(names)}: {', '.join(names)}",
                    )
                cells.append([cell.strip() for cell in row])
                lines.append(rows.line_num)
    except OSError as error:
        raise DataError(f"{path} can not be read: {error.strerror}.") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not a CSV in UTF-8: {error}.") from error
    if not cells:
        raise DataError(f"{path} has no row.")
    return dict(zip(names, map(list, zip(*cells, strict=True)), strict=True)), lines


def _check_unique(examples: Iterable[Example], where: str) -> None:
    counts = Counter(example.id for example in examples)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise DataError(
            f"{where} holds {len(twice)} images more than once.",
            got=", ".join(twice[:_SHOWN]),
            expected="one row for each image: its path is its id",
        )
