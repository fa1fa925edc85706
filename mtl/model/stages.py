"""A backbone as a chain of named stages, which sharing patterns cut, copy and tap.

The last stage, `pool`, turns a feature map [n, C, H, W] into features [n, D]. A backbone whose inside is not known is
one piece: it can be shared as a whole, and nothing else.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import final

from torch import Tensor, nn

from mtl.errors import ConfigError

POOL = "pool"

Step = str | Callable[[Tensor], Tensor]
"""A submodule by its path, or a function without parameters."""


@dataclass(frozen=True)
class Stage:
    """Some consecutive steps. `channels_first` tells whether an output of four axes is [n, C, H, W]."""

    name: str
    steps: tuple[Step, ...]
    channels_first: bool = True


@final
class Part(nn.Module):
    """Consecutive stages of a network. Its parameters keep the names that they have there.

    So do submodules, which share their namespace with this class: timm's networks have one that is called `stages`.

    Args:
        net: the network, of which only the submodules that the stages name are held.
    """

    def __init__(self, net: nn.Module, stages: Iterable[Stage]) -> None:
        super().__init__()
        self.part_stages = tuple(stages)
        for stage in self.part_stages:
            for step in stage.steps:
                if isinstance(step, str):
                    _place(self, step, net.get_submodule(step))

    def forward(self, x: Tensor) -> Tensor:
        """The output of the last stage."""
        for stage in self.part_stages:
            x = self.run_stage(stage, x)
        return x

    def part_taps(self, x: Tensor) -> tuple[Tensor, ...]:
        """The output of every stage."""
        made: list[Tensor] = []
        for stage in self.part_stages:
            x = self.run_stage(stage, x)
            made.append(x)
        return tuple(made)

    def run_stage(self, stage: Stage, x: Tensor) -> Tensor:
        """One stage."""
        for step in stage.steps:
            x = self.get_submodule(step)(x) if isinstance(step, str) else step(x)
        return x

    def parameters_of(self, stage: Stage) -> list[nn.Parameter]:
        """The parameters of one stage."""
        modules = [self.get_submodule(step) for step in stage.steps if isinstance(step, str)]
        return [parameter for module in modules for parameter in module.parameters()]


@final
@dataclass(frozen=True)
class Backbone:
    """A network from images [n, 3, H, W] to features [n, D], and what is known of its inside.

    Attributes:
        name: as in the configuration, for messages.
        net: the network.
        features: D.
        stages: first to last, of which the last is `pool`; empty where nothing is known.
        maps: channels and side in pixels of the feature map [n, C, side, side] that leaves a stage, by the stage's
            name; stages that make no such map are not in it.
    """

    name: str
    net: nn.Module
    features: int
    stages: tuple[Stage, ...] = ()
    maps: dict[str, tuple[int, int]] | None = None

    def whole(self) -> nn.Module:
        """Images to features, sharing its parameters with `net`."""
        return Part(self.net, self.stages) if self.stages else self.net

    def cut(self, stage: str) -> int:
        """The position of a stage.

        Raises:
            ConfigError: there is no such stage; all are listed.
        """
        names = [known.name for known in self.stages]
        if stage not in names:
            raise ConfigError(
                f"The backbone '{self.name}' has no stage '{stage}'.",
                got=stage,
                expected=f"one of {', '.join(names)}" if names else "none: its inside is not known",
                do="name one of these" if names else "use a backbone with stages: torchvision, or an nn.Sequential",
            )
        return names.index(stage)

    def until(self, stage: str) -> Part:
        """The stages before `stage`, sharing their parameters with `net`."""
        return Part(self.net, self.stages[: self.cut(stage)])

    def copied(self, first: str, end: str | None = None) -> Part:
        """A copy of the stages from `first` to the one before `end`, with parameters of its own.

        Several copies can read one tensor: a first layer that works in place no longer does.
        """
        last = len(self.stages) if end is None else self.cut(end)
        part = copy.deepcopy(Part(self.net, self.stages[self.cut(first) : last]))
        leaf = next((module for module in part.modules() if not list(module.children())), None)
        if getattr(leaf, "inplace", False):
            setattr(leaf, "inplace", False)  # noqa: B010 - torch types no such attribute
        return part

    def shrinking(self) -> tuple[int, ...]:
        """Positions of the stages before `pool` after which the map shrinks, the last one included.

        Raises:
            ConfigError: the inside is not known, or a stage does not make a map [n, C, H, W].
        """
        maps, stages = self.maps or {}, self.stages[:-1]
        other = [stage.name for stage in stages if stage.name not in maps]
        if other or not stages:
            raise ConfigError(
                f"The backbone '{self.name}' is not a chain of feature maps.",
                got=f"stages {', '.join(other)} without one" if stages else "a network whose inside is not known",
                expected="stages that all give maps [n, C, H, W]",
                do="use a convolutional network of torchvision, an nn.Sequential, or another model.sharing.pattern",
            )
        sides = [maps[stage.name][1] for stage in stages]
        return tuple(n for n, side in enumerate(sides) if n + 1 == len(sides) or sides[n + 1] != side)

    def last_map(self) -> tuple[int, int]:
        """Channels and side in pixels of the map that enters `pool`.

        Raises:
            ConfigError: the inside is not known, or the map is a single position.
        """
        found = (self.maps or {}).get(self.stages[-2].name) if len(self.stages) > 1 else None
        if found is None or found[1] < 2:
            raise ConfigError(
                f"The backbone '{self.name}' gives no feature map.",
                got="a map of one position" if found else "features alone",
                expected="a map [n, C, H, W] of several positions",
                do="use larger images (augment.size_px)"
                if found
                else "use a torchvision backbone, or an nn.Sequential",
            )
        return found


def stage_parameters(parts: Iterable[nn.Module]) -> list[list[nn.Parameter]]:
    """Parameters of backbones by stage, the earliest first; copies of one stage are together."""
    found: dict[str, list[nn.Parameter]] = {}
    for part in parts:
        if isinstance(part, Part):
            for stage in part.part_stages:
                found.setdefault(stage.name, []).extend(part.parameters_of(stage))
        else:
            found.setdefault("", []).extend(part.parameters())
    return [parameters for parameters in found.values() if parameters]


def _place(root: nn.Module, path: str, module: nn.Module) -> None:
    *folders, last = path.split(".")
    for folder in folders:
        if folder not in dict(root.named_children()):
            root.add_module(folder, nn.Module())
        root = root.get_submodule(folder)
    root.add_module(last, module)
