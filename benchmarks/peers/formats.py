"""The file set in every loader's own format: made once in a scratch folder, and copied to S3 where that is measured."""

import importlib.util
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from benchmarks.common import say
from benchmarks.peers import PEERS
from benchmarks.peers.images import unpack
from benchmarks.peers.runs import Runs
from benchmarks.peers.s3 import empty, make_bucket
from mtl.store import open_store

_UPLOADS = 8  # at once


def installed(names: Sequence[str]) -> list[str]:
    """Those peers whose packages are installed; says which are not."""
    found: list[str] = []
    for name in names:
        missing = [package for package in PEERS[name].packages if not _importable(package)]
        if missing:
            say(f"{name} is left out: {', '.join(missing)} not installed (pip install --group peers)")
        else:
            found.append(name)
    return found


def from_s3(names: Sequence[str]) -> list[str]:
    """Those of `names` that read from a server at an address of one's choice; says which lack a package for it."""
    found: list[str] = []
    for name in names:
        package = PEERS[name].s3
        if isinstance(package, str) and not _importable(package):
            say(f"{name} is left out from S3: {package} not installed (pip install --group peers)")
        elif package:
            found.append(name)
    return found


@contextmanager
def scratch(kept: Path | None) -> Iterator[Path]:
    """A folder for converted data: `kept`, or one that is removed afterwards."""
    if kept:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept.resolve()
        return
    folder = Path(tempfile.mkdtemp(prefix="mtl-bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def convert(runs: Runs, peers: Sequence[str], sample: Path, images: int, copies: int, small: int) -> None:
    """Make what is missing below the scratch folder.

    Args:
        images: in the file set.
        copies: of the file set, in the data set `big`, for ours alone; one needs no other data set.
        small: CIFAR-10-sized images in the data set `small`, for ours alone; 0 makes none.
    """
    tree = str(runs.scratch / "images")
    with _whole(runs.scratch / "images", images) as folder:
        if folder:
            say(f"writing {images:,} images")
            unpack(sample, folder, images)
    own = sorted({PEERS[name].data for name in peers} - {"images"})
    todo = [("ours", "ours", images, 1), *((name, name, images, 1) for name in own)]
    todo += [("big", "ours", images * copies, copies)] if copies > 1 else []
    runs.expected += len(todo) + 1
    for name, loader, count, times in todo:
        with _whole(runs.scratch / name, count) as folder:
            spec = {"loader": loader, "images": tree, "folder": str(folder)}
            if folder:
                runs.run(f"convert {name}", "prepare", **spec, **({"copies": times} if loader == "ours" else {}))
    if not small:
        return
    with _whole(runs.scratch / "small", small) as folder:
        if folder:
            runs.run("convert small", "prepare_small", folder=str(folder), count=small)


@contextmanager
def uploaded(scratch: Path, names: Sequence[str], address: str) -> Iterator[None]:
    """The folders `names` below the S3 address, until the block ends."""
    make_bucket(address)
    try:
        for name in sorted({*names}):
            _upload(scratch / name, f"{address}/{name}")
        yield
    finally:
        empty(address)


def _upload(folder: Path, address: str) -> None:
    say(f"copying {folder.name} to {address}")
    store = open_store(address)
    paths = [path for path in folder.rglob("*") if path.is_file()]
    with ThreadPoolExecutor(_UPLOADS) as pool:
        for _ in pool.map(lambda path: store.put_file(path.relative_to(folder).as_posix(), path), paths):
            pass


def _importable(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


@contextmanager
def _whole(path: Path, count: int) -> Iterator[Path | None]:
    """A new folder to fill, which becomes `path` once it is full; None if `path` holds `count` images already."""
    stamp, partial = path.with_suffix(".count"), path.with_suffix(".partial")
    if stamp.is_file() and stamp.read_text() == str(count):
        yield None
        return
    stamp.unlink(missing_ok=True)
    for old in (path, partial):
        shutil.rmtree(old, ignore_errors=True)
    partial.mkdir()
    yield partial
    if any(partial.iterdir()):
        partial.rename(path)
        stamp.write_text(str(count))
