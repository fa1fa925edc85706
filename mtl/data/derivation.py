"""Coarser labels from finer ones: from a file that names them, or from a tree."""

import csv
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import TypeAdapter, ValidationError

from mtl.data.groups import groups_of
from mtl.data.labels import check_name, sort_classes
from mtl.data.manifest import Label, Manifest
from mtl.data.taxonomy import Path as TreePath
from mtl.data.taxonomy import cut, split_path
from mtl.errors import DataError


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
        names = read_names(path)
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


def read_names(path: Path) -> dict[str, str]:
    """New names by old ones, from a CSV with the columns old and new, or a JSON object.

    Raises:
        DataError: the file can not be read, or is not of that form.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} can not be read: {error.strerror}.") from error
    return _json(path, content) if path.suffix == ".json" else _csv(path, content)


def tree_paths(tree: str, label: str, manifest: Manifest) -> list[TreePath]:
    """The nodes above each class of `label`, from the broadest down; none for a class that has no place in the tree.

    Args:
        tree: a file as for `Derivation.load`, whose new names are paths; or labels that group the classes of `label`,
            separated by commas, from the broadest to the finest.

    Raises:
        DataError: the file can not be read or names no class, or a label does not group the classes.
    """
    classes = manifest.labels[label].classes or ()
    if not tree.endswith((".csv", ".json")):
        columns = [name.strip() for name in tree.split(",")]
        ids = [groups_of(manifest, label, name) for name in columns]
        names = [manifest.labels[name].classes or () for name in columns]
        return [
            tuple(known[group[at]] for known, group in zip(names, ids, strict=True) if group[at] >= 0)
            for at in range(len(classes))
        ]
    found = read_names(Path(tree))
    if not found.keys() & {*classes}:
        raise DataError(
            f"{tree} names no class of label '{label}'.",
            got=", ".join([*found][:8]) or "an empty file",
            expected=", ".join(classes[:8]),
            do="name a file with the classes in its first column, or leave the task's tree out",
        )
    return [split_path(found[name]) if name in found else () for name in classes]


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
