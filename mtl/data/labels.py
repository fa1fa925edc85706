"""Label columns from text: what kind each is, and its values."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias, get_args

from mtl.cli import pairs
from mtl.data.manifest import Label, LabelKind
from mtl.errors import ConfigError, DataError

Value: TypeAlias = int | float | tuple[int, ...] | tuple[float, ...] | None
Where: TypeAlias = Callable[[int], str]

KINDS: tuple[LabelKind, ...] = get_args(LabelKind)
_NAMED: tuple[LabelKind, ...] = ("class", "set", "vector", "soft")
_BOOLEANS = {"0": 0, "1": 1, "false": 0, "true": 1}
_RESERVED = ("image", "image_id", "width", "height", "path", "split")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,62}")
_BETWEEN, _UNKNOWN = "|", "?"
_ROUNDING = 1e-3  # of probabilities that people write down

_EXPECTED: dict[LabelKind, str] = {
    "class": "one of the names given with --kinds",
    "binary": "0, 1, true or false",
    "real": "a finite number",
    "angle": "radians in [0, 2 pi)",
    "set": "names of the kind's classes between '|', each once, after '?' where it is not known; '|' for none",
    "vector": "numbers between spaces, as many in each cell, ? for an unknown one",
    "soft": "a probability for each class between spaces, together 1",
}


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


def parse_kinds(texts: Iterable[str]) -> dict[str, str]:
    """Kinds by label, from `name=kind` each, or `name=kind:a|b|c` where the names of classes are given in order.

    Raises:
        ConfigError: one is not of that form, or no kind.
    """
    given = pairs("--kinds", texts)
    if wrong := sorted(name for name, text in given.items() if _parsed(text) is None):
        raise ConfigError(
            f"--kinds does not know what {', '.join(wrong)} shall be.",
            got=", ".join(f"{name}={given[name]}" for name in wrong),
            expected=f"one of {', '.join(KINDS)}; {', '.join(_NAMED)} also with names, as in size=class:low|high",
        )
    return given


def _parsed(text: str) -> tuple[LabelKind, tuple[str, ...]] | None:
    kind, _, rest = text.partition(":")
    names = tuple(name.strip() for name in rest.split(_BETWEEN)) if rest else ()
    found: LabelKind | None = next((known for known in KINDS if known == kind), None)
    good = not rest or (found in _NAMED and all(names) and len({*names}) == len(names) > 1)
    return (found, names) if found and good else None


def sort_classes(names: set[str]) -> tuple[str, ...]:
    """Class names in the order of their ids: alphabetical, but whole numbers by value, and first."""
    return tuple(sorted(names, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)))


def encode(name: str, cells: Sequence[str], kind: str | None, where: Where) -> tuple[Label, list[Value]]:
    """One column of a table as a label and its values, one per cell. An empty cell is a missing label.

    Args:
        name: of the label.
        cells: text as in the table, stripped.
        kind: of the label, perhaps with the names of its classes: see `parse_kinds`; inferred if None.
        where: names the place of a cell, for errors.

    Raises:
        DataError: a cell does not fit, or the column is empty.
    """
    check_name(name)
    filled = {cell for cell in cells if cell}
    if not filled:
        raise DataError(f"Label '{name}' has no value in any row.", do="fill in the column or remove it")
    found = (_infer(name, cells, where), ()) if kind is None else _parsed(kind)
    assert found is not None, kind
    kind, classes = found
    if not classes:
        classes = _classes(kind, filled)
    parse = _parser(kind, classes)
    values: list[Value] = []
    for i, cell in enumerate(cells):
        value = parse(cell) if cell else None
        if cell and value is None:
            raise DataError(
                f"{where(i)} is not a value of kind {kind}.",
                got=repr(cell),
                expected=f"{_EXPECTED[kind]}; empty where the label is missing",
                do=f"mend the cell, or say what the column holds: --kinds {name}={'|'.join(KINDS)}",
            )
        values.append(value)
    return Label(kind=kind, classes=classes or None), values


def _infer(name: str, cells: Sequence[str], where: Where) -> LabelKind:
    filled = {cell for cell in cells if cell}
    if all(cell.lower() in _BOOLEANS for cell in filled):
        return "binary"
    numbers = {cell for cell in filled if _number(cell) is not None}
    if numbers == filled:
        return "real"
    if any(_BETWEEN in cell for cell in filled):
        return "set"
    widths = {len(cell.split()) for cell in filled}
    if len(widths) == 1 and widths != {1} and all(_vector(cell, max(widths)) for cell in filled):
        return "vector"
    if not numbers:
        return "class"
    odd = next(i for i, cell in enumerate(cells) if cell and cell not in numbers)
    raise DataError(
        f"{where(odd)} is not a number, though other rows of '{name}' hold numbers.",
        got=f"{cells[odd]!r} beside {min(numbers)!r}",
        expected="either numbers or names",
        do=f"mend the cell, or pass --kinds {name}=class if numbers are names here",
    )


def _classes(kind: LabelKind, filled: set[str]) -> tuple[str, ...]:
    """The names of classes or entries that a column itself shows; none for kinds without."""
    if kind == "class":
        return sort_classes(filled)
    if kind == "set":
        return sort_classes({part for cell in filled for part, _ in _parts(cell)} - {""})
    if kind in _NAMED:
        return tuple(map(str, range(len(min(filled).split()))))
    return ()


def _parser(kind: LabelKind, classes: tuple[str, ...]) -> Callable[[str], Value]:
    number = {text: i for i, text in enumerate(classes)}
    match kind:
        case "class":
            return number.get
        case "binary":
            return lambda cell: _BOOLEANS.get(cell.lower())
        case "real":
            return _real
        case "angle":
            return _angle
        case "set":
            return lambda cell: _set(cell, number)
        case "vector":
            return lambda cell: _vector(cell, len(classes))
        case "soft":
            return lambda cell: _soft(cell, len(classes))


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _real(cell: str) -> float | None:
    value = _number(cell)
    return value if value is not None and math.isfinite(value) else None


def _angle(cell: str) -> float | None:
    value = _real(cell)
    return value if value is not None and 0 <= value < 2 * math.pi else None


def _parts(cell: str) -> list[tuple[str, bool]]:
    """The names in a cell, each with whether it is known."""
    parts = [part.strip() for part in cell.split(_BETWEEN)]
    return [(part.removeprefix(_UNKNOWN).strip(), not part.startswith(_UNKNOWN)) for part in parts if part]


def _set(cell: str, number: dict[str, int]) -> tuple[int, ...] | None:
    parts = _parts(cell)
    if any(name not in number for name, _ in parts) or len({name for name, _ in parts}) != len(parts):
        return None
    return tuple(number[name] if known else -1 - number[name] for name, known in parts)


def _vector(cell: str, width: int) -> tuple[float, ...] | None:
    values = [math.nan if part == _UNKNOWN else _real(part) for part in cell.split()]
    known = [value for value in values if value is not None]
    good = len(known) == len(values) == width and not all(math.isnan(value) for value in known)
    return tuple(known) if good else None


def _soft(cell: str, width: int) -> tuple[float, ...] | None:
    values = [value for part in cell.split() if (value := _real(part)) is not None and value >= 0]
    total = sum(values)
    good = len(values) == len(cell.split()) == width and abs(total - 1) <= _ROUNDING
    return tuple(value / total for value in values) if good else None
