"""Named, complete configurations: what to run, on what, for how long, and what to expect.

One file each: its docstring is what `jobs/train.py RECIPE --help` shows first, and CONFIG is the configuration.
"""

from mtl.config import Config
from mtl.errors import ConfigError
from mtl.recipes import article, cifar10, imagenet_resnet50, imagenet_sample, inferred, shapes
from mtl.recipes.inferred import auto

__all__ = ["ABOUT", "DESCRIPTIONS", "RECIPES", "SHAPES", "auto", "get", "listed"]

SHAPES = shapes.CONFIG

_FILES = {file.CONFIG.recipe: file for file in (shapes, cifar10, imagenet_sample, article, imagenet_resnet50)}

RECIPES: dict[str, Config] = {name: file.CONFIG for name, file in _FILES.items()}

DESCRIPTIONS: dict[str, str] = {name: file.__doc__ or "" for name, file in {**_FILES, "auto": inferred}.items()}

ABOUT: dict[str, str] = {name: text.partition("\n")[0] for name, text in DESCRIPTIONS.items()}


def get(name: str) -> Config:
    """The recipe called `name`.

    Raises:
        ConfigError: there is none.
    """
    if name not in RECIPES:
        raise ConfigError(
            f"There is no recipe '{name}'.",
            got=name,
            expected=listed().replace("\n", "\n" + " " * 12),
            do="python jobs/train.py --help shows examples",
        )
    return RECIPES[name]


def listed() -> str:
    """One line for each recipe."""
    width = max(map(len, ABOUT))
    return "\n".join(f"{name:<{width}}  {about}" for name, about in ABOUT.items())
