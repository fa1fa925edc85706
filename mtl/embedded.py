"""The embedded data set, written where a recipe expects it: nothing to download, so nothing to prepare by hand."""

import sys

from mtl import recipes
from mtl.arguments import anchored
from mtl.config import Config
from mtl.data.manifest import MANIFEST
from mtl.data.options import SHAPES_IMAGES, Options
from mtl.errors import NotFound
from mtl.store import open_store


def ensure(config: Config) -> None:
    """Draw and write the data set of the recipe `shapes`, unless it is there or the run reads another one."""
    if config.recipe != recipes.SHAPES.recipe or config.data != anchored(recipes.SHAPES.data):
        return
    try:
        open_store(config.data).stat(MANIFEST)
    except NotFound:
        from mtl.data import source
        from mtl.data.prepare import prepare

        options = Options(shard_mib=8)
        prepare(source.shapes(SHAPES_IMAGES), config.data, options, "shapes, seed 0", _say)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
