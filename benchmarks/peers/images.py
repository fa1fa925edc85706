"""The one file set that every loader reads: the real JPEGs of a tar, repeated under new ids until there are enough."""

import os
import tarfile
from pathlib import Path


def unpack(sample: Path, folder: Path, count: int) -> None:
    """Write `count` images of the tar `sample` as CLASS/ID.jpg below `folder`.

    The copies have bytes of their own on disk, so that reading them costs what reading as many images does.
    """
    with tarfile.open(sample) as archive:
        members = sorted((member for member in archive if member.isreg()), key=lambda member: member.name)
        names = [member.name.split("/")[-2] for member in members]
        contents = [archive.extractfile(member).read() for member in members]  # type: ignore[union-attr]
    for number in range(count):
        at = number % len(contents)
        path = folder / names[at] / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents[at])


def files(folder: Path) -> list[tuple[Path, int]]:
    """Every image below `folder` with the number of its class, in an order that mixes the classes."""
    classes = {name: number for number, name in enumerate(sorted(os.listdir(folder)))}
    found = [(path, classes[path.parent.name]) for path in folder.glob("*/*.jpg")]
    return sorted(found, key=lambda file: file[0].name)
