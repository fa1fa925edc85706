"""Write a data set that jobs/train.py can read, from images on this machine, to a folder or to s3://bucket/prefix.

    python jobs/prepare.py shapes DEST
    python jobs/prepare.py imagefolder SRC DEST --label object --derive kind=object:jobs/labels/cifar10-kind.csv
    python jobs/prepare.py table labels.csv DEST --images photos/ --kinds age=real --carve val=0.1
Interrupted, it goes on where it stopped when it is run again.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tyro
from tyro.conf import OmitArgPrefixes, UseAppendAction

from mtl import cli
from mtl.data.options import SHAPES_IMAGES, Options

if TYPE_CHECKING:
    from mtl.data.source import Source

Kinds = UseAppendAction[tuple[str, ...]]


def imagefolder(
    src: Path, dest: str, /, options: OmitArgPrefixes[Options], label: str = "class", kind: str = "class"
) -> None:
    """SRC/class/image or SRC/{train,val,test}/class/image, in a folder or a tar archive (plain, gz, xz, bz2).

    Args:
        label: what to call the label.
        kind: what folder names are: class, class:low|mid|high (in that order), set (folders such as cat|dog), real ...
    """
    print(f"reading {src}", flush=True)
    from mtl.data import files, source

    _write(source.image_folder(files.open_images(src), label, kind), dest, options, str(src))


def table(csv: Path, dest: str, /, images: Path, options: OmitArgPrefixes[Options], kinds: Kinds = ()) -> None:
    """A CSV with a column path, perhaps split, and one for each label; an empty cell is a missing label.

    Args:
        images: folder or tar archive that the paths start from.
        kinds: LABEL=class|binary|real|angle|set|vector|soft where it shall not be inferred, perhaps with names in
            their order, LABEL=class:low|mid|high; may be repeated. Cells: docs/data.md.
    """
    print(f"reading {csv}", flush=True)
    from mtl.data import files, source
    from mtl.data.labels import parse_kinds

    found = source.table(csv, files.open_images(images), parse_kinds(kinds))
    _write(found, dest, options, str(csv))


def shapes(dest: str, /, options: OmitArgPrefixes[Options], images: int = SHAPES_IMAGES) -> None:
    """Drawings with five different labels on each image: made here, nothing to download.

    Args:
        images: how many; a seventh of them for val and test.
    """
    print(f"drawing {images:,} images", flush=True)
    from mtl.data import source

    _write(source.shapes(images, options.seed), dest, options, f"shapes, seed {options.seed}")


def _write(source: "Source", dest: str, options: Options, origin: str) -> None:
    from mtl.data.prepare import prepare, show

    show(prepare(source, dest, options, origin, print), dest, sys.stdout)
    print(f"next: python jobs/train.py auto --data {dest}")


if __name__ == "__main__":
    COMMANDS = {"imagefolder": imagefolder, "table": table, "shapes": shapes}
    cli.run(lambda: tyro.extras.subcommand_cli_from_dict(COMMANDS, description=__doc__))
