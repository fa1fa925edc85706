"""What a submission uploads: the files of a working directory, counted and shown before anything is sent."""

import os
import stat
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self, final
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from mtl.errors import ConfigError
from mtl.on_ray.ignore import Patterns

LIMIT_BYTES = 100_000_000
"""A head's dashboard accepts requests of 100 MiB."""

EXCLUDED = Patterns.of(
    [
        *(".git", ".venv", "venv", "/data", "/runs", "__pycache__", "*.pyc", ".*_cache", ".hypothesis", "*.egg-info"),
        # A cluster keeps what it is sent, and everybody on it can read it.
        *(".env", ".env.*", "*.pem", "*.key", "id_rsa*", "id_ed25519*", ".netrc", ".aws", ".ssh", "auth_token"),
    ]
)
"""Never uploaded, whatever the ignore files say."""


@final
@dataclass(frozen=True)
class Package:
    """The files of one working directory that would be uploaded.

    Attributes:
        root: the working directory.
        files: size in bytes of each file, by its path below root.
    """

    root: Path
    files: dict[str, int]

    @classmethod
    def scan(cls, root: Path) -> Self:
        """List what is there, without what .gitignore, .rayignore and `EXCLUDED` leave out.

        Raises:
            ConfigError: root is no folder, or something in it can not be read.
        """
        if not root.is_dir():
            raise ConfigError("The working directory is not a folder.", got=root, do="set --working-dir")
        try:
            return cls(root, dict(sorted(_walk(root, "", [("", EXCLUDED)], (os.path.realpath(root),)))))
        except OSError as error:
            raise ConfigError(
                f"The working directory {root} can not be read.",
                got=f"{error.strerror}: {error.filename}",
                do="mend its permissions, or name it in .rayignore",
            ) from error

    @property
    def total_bytes(self) -> int:
        """Size of all files together."""
        return sum(self.files.values())

    def describe(self) -> str:
        """How much it is, and where most of it lies, for people."""
        return f"{megabytes(self.total_bytes)} in {len(self.files):,} files of {self.root}: {self.largest()}"

    def largest(self, count: int = 4) -> str:
        """The largest entries with their sizes, for people."""
        return ", ".join(f"{name} {megabytes(size)}" for name, size in self._entries()[:count])

    def check(self) -> None:
        """Refuse what a head would not accept.

        Raises:
            ConfigError: it is too large; the message names what to leave out.
        """
        if self.total_bytes > LIMIT_BYTES:
            raise ConfigError(
                f"The working directory {self.root} is too large to upload.",
                got=f"{megabytes(self.total_bytes)} in {len(self.files):,} files: {self.largest()}",
                expected=f"at most {megabytes(LIMIT_BYTES)} of code; data sets and runs belong into storage",
                do=f"leave out what the job does not need: echo '/{self._entries()[0][0]}' >> {self.root}/.rayignore",
            )

    def write(self, target: Path) -> None:
        """Write the files into a zip archive; equal files make equal archives, which a head keeps only once.

        Raises:
            ConfigError: a file can not be read.
        """
        with ZipFile(target, "w", ZIP_DEFLATED) as archive:
            for name in self.files:
                path = self.root / name
                info = ZipInfo(name)
                info.compress_type = ZIP_DEFLATED
                try:
                    info.external_attr = (stat.S_IFREG | stat.S_IMODE(path.stat().st_mode)) << 16
                    archive.writestr(info, path.read_bytes())
                except OSError as error:
                    raise ConfigError(f"The file {path} can not be read: {error.strerror}.") from error

    def _entries(self) -> list[tuple[str, int]]:
        """Entries of the working directory, the largest first; one that is nearly all in one place names that place."""
        return sorted((self._place(name) for name in self._children("")), key=lambda entry: -entry[1])

    def _place(self, name: str) -> tuple[str, int]:
        size = sum(size for path, size in self.files.items() if path == name or path.startswith(name))
        children = self._children(name) if name.endswith("/") else {}
        heaviest = max(children, key=lambda child: children[child], default=None)
        return self._place(heaviest) if heaviest and children[heaviest] > 0.9 * size else (name, size)

    def _children(self, folder: str) -> dict[str, int]:
        sizes: defaultdict[str, int] = defaultdict(int)
        for path, size in self.files.items():
            if path.startswith(folder):
                first, slash, _ = path[len(folder) :].partition("/")
                sizes[folder + first + slash] += size
        return sizes


def megabytes(size: float) -> str:
    """A number of bytes, for people."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _walk(
    folder: Path, prefix: str, ignored: list[tuple[str, Patterns]], real: tuple[str, ...]
) -> Iterator[tuple[str, int]]:
    """Files below `folder` with their sizes, through links, but not through one that leads back to a parent.

    Args:
        prefix: of every path below the folder, relative to the root: '' or 'some/folder/'.
        ignored: patterns that hold here, each with the prefix of the folder that it is relative to.
        real: where this folder and its parents really are.
    """
    ignored = [*ignored, *((prefix, found) for found in _patterns_in(folder))]
    with os.scandir(folder) as entries:
        for entry in entries:
            path, is_folder = prefix + entry.name, entry.is_dir()
            if any(patterns.exclude(path[len(base) :], folder=is_folder) for base, patterns in ignored):
                continue
            if is_folder:
                here = os.path.realpath(entry.path)
                if here not in real:
                    yield from _walk(Path(entry.path), f"{path}/", ignored, (*real, here))
            elif entry.is_file():
                yield path, entry.stat().st_size


def _patterns_in(folder: Path) -> Iterator[Patterns]:
    for name in (".gitignore", ".rayignore"):
        path = folder / name
        if path.is_file():
            yield Patterns.of(path.read_text(errors="replace").splitlines())
