"""Label columns from text: what kind each is, its values, and coarser labels derived from finer ones."""

import csv
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeAlias, get_args

from pydantic import TypeAdapter, ValidationError

from mtl.cli import pairs
from mtl.data.manifest import Label, LabelKind
from mtl.data.taxonomy import cut
from mtl.errors import ConfigError, DataError

Value: TypeAlias = int | float | None
Where: TypeAlias = Callable[[int], str]

_KINDS: tuple[LabelKind, ...] = get_args(LabelKind)
_BOOLEANS = {"0": 0, "1": 1, "false": 0, "true": 1}
_RESERVED = ("image", "image_id", "width", "height", "path", "split")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,62}")


def check_name(name: str) -> None:
    """Refuse a label name that can not be a column and a key of the configuration.

    Raises:
        DataError: it is reserved, or not a plain name.
    """
    if name in _RESERVED or not _NAME.fullmatch(name):
        raise DataError(
            "A label can not have this name.",
            got=repr(name),
            expected=f"a letter, then letters, digits, '_' or '-'; and none of {', '.join(_RESERVED)}",
            do="rename the column",
        )


def parse_kinds(texts: Iterable[str]) -> dict[str, LabelKind]:
    """Kinds by label, from `name=kind` each.

    Raises:
        ConfigError: one is not of that form, or no kind.
    """
    given = pairs("--kinds", texts)
    kinds: dict[str, LabelKind] = {name: kind for name, text in given.items() for kind in _KINDS if text == kind}
    if wrong := given.keys() - kinds.keys():
        raise ConfigError(
            f"--kinds does not know what {', '.join(sorted(wrong))} shall be.",
            got=", ".join(f"{name}={given[name]}" for name in sorted(wrong)),
            expected=f"one of {', '.join(_KINDS)}",
        )
    return kinds


def sort_classes(names: set[str]) -> tuple[str, ...]:
    """Class names in the order of their ids: alphabetical, but whole numbers by value, and first."""
    return tuple(sorted(names, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)))


def encode(name: str, cells: Sequence[str], kind: LabelKind | None, where: Where) -> tuple[Label, list[Value]]:
    """One column of a table as a label and its values, one per cell. An empty cell is a missing label.

    Args:
        name: of the label.
        cells: text as in the table, stripped.
        kind: of the label; inferred if None.
        where: names the place of a cell, for errors.

    Raises:
        DataError: a cell does not fit, or the column is empty.
    """
    check_name(name)
    filled = {cell for cell in cells if cell}
    if not filled:
        raise DataError(f"Label '{name}' has no value in any row.", do="fill in the column or remove it")
    kind = kind or _infer(name, cells, where)
    if kind == "class":
        label = Label(kind=kind, classes=sort_classes(filled))
        number = {text: i for i, text in enumerate(label.classes or ())}
        return label, [number.get(cell) for cell in cells]
    parse = {"binary": _binary, "real": _real, "angle": _angle}[kind]
    values: list[Value] = []
    for i, cell in enumerate(cells):
        value = parse(cell) if cell else None
        if cell and value is None:
            expected = {
                "binary": "0, 1, true or false",
                "real": "a finite number",
                "angle": "radians in [0, 2 pi)",
            }[kind]
            raise DataError(
                f"{where(i)} is not a value of kind {kind}.",
                got=repr(cell),
                expected=f"{expected}; empty where the label is missing",
                do=f"mend the cell, or say what the column holds: --kinds {name}=class|binary|real|angle",
            )
        values.append(value)
    return Label(kind=kind), values


def _infer(name: str, cells: Sequence[str], where: Where) -> LabelKind:
    filled = {cell for cell in cells if cell}
    if all(cell.lower() in _BOOLEANS for cell in filled):
        return "binary"
    numbers = {cell for cell in filled if _number(cell) is not None}
    if numbers == filled:
        return "real"
    if not numbers:
        return "class"
    odd = next(i for i, cell in enumerate(cells) if cell and cell not in numbers)
    raise DataError(
        f"{where(odd)} is not a number, though other rows of '{name}' hold numbers.",
        got=f"{cells[odd]!r} beside {min(numbers)!r}",
        expected="either numbers or names",
        do=f"mend the cell, or pass --kinds {name}=class if numbers are names here",
    )


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _binary(cell: str) -> int | None:
    return _BOOLEANS.get(cell.lower())


def _real(cell: str) -> float | None:
    value = _number(cell)
    return value if value is not None and math.isfinite(value) else None


def _angle(cell: str) -> float | None:
    value = _real(cell)
    return value if value is not None and 0 <= value < 2 * math.pi else None


@dataclass(frozen=True)
class Derivation:
    """A label `new` that names, for classes of the label `old`, coarser ones. Classes not in `names` have none."""

    new: str
    old: str
    names: dict[str, str]
    file: Path

    @classmethod
    def load(cls, text: str) -> Self:
        """From `NEW=OLD:FILE` or `NEW=OLD:FILE:N`.

        FILE is a CSV with the columns old and new, or a JSON object from old to new. With N, its new names are paths
        in a tree, `animal > bird > owl`, which is cut into at most N groups: see mtl.data.taxonomy.

        Raises:
            DataError: the text or the file is not of that form.
            ConfigError: the tree can not be cut into N groups.
        """
        new, equals, rest = text.partition("=")
        old, colon, place = rest.partition(":")
        cuts = re.fullmatch("(.+):([0-9]+)", place)
        file = cuts[1] if cuts else place
        if not (equals and colon and new and old and file):
            raise DataError(
                "--derive can not be understood.",
                got=text,
                expected="NEW=OLD:FILE or, for a file of paths, NEW=OLD:FILE:GROUPS; for example "
                "kind=object:jobs/labels/cifar10-kind.csv",
            )
        check_name(new)
        path = Path(file)
        try:
            content = path.read_text(encoding="utf-8-sig")
        except OSError as error:
            raise DataError(f"--derive {new}: {file} can not be read: {error.strerror}.") from error
        names = _json(path, content) if path.suffix == ".json" else _csv(path, content)
        return cls(new, old, cut(names, int(cuts[2])) if cuts else names, path)

    def apply(self, label: Label) -> tuple[Label, list[int | None]]:
        """The derived label, and its class id for each class id of `label`.

        Raises:
            DataError: `label` has no classes, or none that the file names.
        """
        classes = label.classes or ()
        coarse = sort_classes({self.names[name] for name in classes if name in self.names})
        if not coarse:
            raise DataError(
                f"{self.file} names no class of label '{self.old}'.",
                got=", ".join(list(self.names)[:8]) or "an empty file",
                expected=", ".join(classes[:8]) or f"'{self.old}' to be of kind class, not {label.kind}",
            )
        number = {name: i for i, name in enumerate(coarse)}
        ids = [number[self.names[name]] if name in self.names else None for name in classes]
        return Label(kind="class", classes=coarse), ids


def _json(path: Path, content: str) -> dict[str, str]:
    try:
        return TypeAdapter(dict[str, str]).validate_json(content)
    except ValidationError as error:
        raise DataError(f"{path} is not a JSON object from old names to new ones: {error}") from error


def _csv(path: Path, content: str) -> dict[str, str]:
    rows = csv.DictReader(content.splitlines())
    if list(rows.fieldnames or ()) != ["old", "new"]:
        raise DataError(f"{path} has other columns.", got=rows.fieldnames, expected="first line: old,new")
    names: dict[str, str] = {}
    for row in rows:
        old, new = (row["old"] or "").strip(), (row["new"] or "").strip()
        if not (old and new) or names.setdefault(old, new) != new:
            raise DataError(
                f"{path} line {rows.line_num} is empty, or contradicts an earlier line.",
                got=f"{old},{new}",
                expected="each old name once, with its new name",
            )
    return names
