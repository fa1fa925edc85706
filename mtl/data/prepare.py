"""What jobs/prepare.py does with a source: derive, carve, write, and tell a person what came of it."""

import time
from collections.abc import Callable
from typing import TextIO

from rich.console import Console
from rich.table import Table

from mtl.cli import pairs
from mtl.data.derivation import Derivation
from mtl.data.manifest import Index, LabelCount, Manifest
from mtl.data.options import Options
from mtl.data.plan import Layout
from mtl.data.source import Source, carve, derive
from mtl.data.writer import write
from mtl.errors import ConfigError
from mtl.progress import Progress
from mtl.store import open_store


def prepare(source: Source, dest: str, options: Options, origin: str, say: Callable[[str], object]) -> Manifest:
    """Write `source`, with labels derived and splits carved as `options` say, to a folder or an s3:// address.

    Args:
        origin: recorded in the manifest.
        say: shows a line.

    Raises:
        ConfigError: an option can not be understood.
        DataError: see `write`, `derive` and `carve`.
        StoreError: storage failed; a rerun goes on from what is complete.
    """
    store = open_store(dest)
    layout = _layout(options)
    shares = {split: _share(text) for split, text in pairs("--carve", options.carve).items()}
    for text in options.derive:
        source = derive(source, Derivation.load(text))
    source = carve(source, shares or None)
    for note in source.notes:
        say(note)
    began = time.monotonic()
    with Progress("prepare", max(1, len(source.examples)), "images") as progress:
        manifest = write(
            store,
            options.name or store.uri.rpartition("/")[2],
            source.examples,
            source.labels,
            layout,
            workers=options.workers,
            skip_bad=options.skip_bad,
            overwrite=options.overwrite,
            source={"from": origin},
            progress=progress,
        )
    if skipped := manifest.source.get("skipped"):
        say(f"{skipped} damaged images are left out: {manifest.source['skipped_first']}")
    say(f"{manifest.name} is at {store.uri} ({time.monotonic() - began:.0f} s)")
    return manifest


def show(manifest: Manifest, dest: str, stream: TextIO) -> None:
    """A short table of what the data set at `dest` holds."""
    store = open_store(dest)
    splits = Table("split", "rows", "shards", "row groups", "MB", box=None)
    labels = Table("label", "kind", *(f"{split}: labelled" for split in manifest.splits), "classes", box=None)
    for name, split in manifest.splits.items():
        shards = len(Index.load(store, name).shard_path)
        splits.add_row(name, f"{split.rows:,}", f"{shards:,}", f"{split.row_groups:,}", f"{split.bytes / 1e6:,.1f}")
    for name, label in manifest.labels.items():
        counts = (_labelled(split.labels[name]) for split in manifest.splits.values())
        labels.add_row(name, label.kind, *counts, _classes(label.classes))
    console = Console(file=stream, width=None if stream.isatty() else 120, highlight=False)
    for table in (splits, labels):
        console.print(table)


def _layout(options: Options) -> Layout:
    sizes = options.shard_mib, options.row_group_mib, options.short_side_px or 1, options.workers or 1
    if min(sizes) <= 0 or not 0 <= options.seed < 2**64:
        raise ConfigError("Sizes and workers must be positive, the seed in [0, 2^64).", got=options)
    return Layout(options.seed, options.shard_mib << 20, int(options.row_group_mib * 2**20), options.short_side_px)


def _share(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError("--carve takes a share of the train split.", got=text, expected="such as val=0.05") from error


def _labelled(count: LabelCount) -> str:
    return f"{count.valid:,}" + (f" ({count.nulls:,} missing)" if count.nulls else "")


def _classes(names: tuple[str, ...] | None) -> str:
    if not names:
        return ""
    return f"{len(names):,}: {', '.join(names[:4])}" + (" ..." if len(names) > 4 else "")
