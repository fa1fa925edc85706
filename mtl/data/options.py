"""The options of jobs/prepare.py that every kind of source takes. Imports nothing heavy: --help answers at once."""

from dataclasses import dataclass

from tyro.conf import UseAppendAction


@dataclass(frozen=True)
class Options:
    """For every kind of source."""

    name: str | None = None  # of the data set; the last part of DEST unless given
    seed: int = 0  # of the order of rows; for shapes also of the drawings
    carve: UseAppendAction[tuple[str, ...]] = ()  # val=SHARE or test=SHARE of the train split to make that split from
    derive: UseAppendAction[tuple[str, ...]] = ()
    """NEW=OLD:FILE, a coarser label; FILE is a CSV old,new or JSON. NEW=OLD:FILE:N where the new names are paths
    `animal > bird > owl`: they are cut into at most N groups."""
    short_side_px: int | None = None  # shrink images with a longer short side: decoding gets 2-3x cheaper
    shard_mib: int = 128  # size of a shard
    row_group_mib: float = 3.0  # size of a row group, the unit of read
    workers: int | None = None  # threads; one for each CPU unless given
    skip_bad: bool = False  # leave out damaged images instead of stopping at the first
    overwrite: bool = False  # replace another data set that is finished at DEST


SHAPES_IMAGES = 12_000
"""Drawings in the embedded data set: 10,278 to train on, 874 and 848 for val and test."""
