"""Sharing up to a stage: the tasks part ways there, each with copies of the later stages."""

from typing import final

from torch import Tensor, nn

from mtl.errors import ConfigError
from mtl.model.heads import HeadSpec
from mtl.model.sharing.base import BoundaryModel, Shared, by_task
from mtl.model.stages import POOL, Backbone


@final
class SplitSharing(BoundaryModel):
    """A shared trunk; from `stage` on, a tower for each task. What leaves the trunk is the boundary.

    Towers begin as equal copies, so that pretrained weights serve each of them; their heads set them apart.

    Args:
        stage: the first one that each task has for itself.

    Raises:
        ConfigError: the backbone has no such stage, or nothing comes before it.
    """

    def __init__(self, backbone: Backbone, heads: HeadSpec, stage: str) -> None:
        super().__init__()
        self.tasks = heads.tasks
        if backbone.cut(stage) == 0:
            names = [known.name for known in backbone.stages]
            raise ConfigError(
                "Splitting at the first stage shares nothing.", got=stage, expected=f"one of {', '.join(names[1:])}"
            )
        if heads.attention and stage == POOL:
            raise ConfigError(
                "Heads that attend take the place of the stage 'pool', so there is nothing to split at it.",
                do="split at an earlier stage, or choose model.sharing.pattern=hard",
            )
        width = backbone.last_map()[0] if heads.attention else backbone.features
        self.trunk = backbone.until(stage)
        end = POOL if heads.attention else None
        self.towers = nn.ModuleDict({task: backbone.copied(stage, end) for task in self.tasks})
        self.heads = heads.build(width)

    def forward_shared(self, images: Tensor) -> Shared:
        """The trunk's output, such as [n, C, H, W]."""
        return (self.trunk(images),)

    def forward_task(self, task: str, shared: Shared) -> Tensor:
        """One tower and its head."""
        return self.heads.one(task, self.towers[task](shared[0]))

    def shared_parameters(self) -> list[nn.Parameter]:
        """The trunk's."""
        return list(self.trunk.parameters())

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """The tower's and the head's."""
        return [*self.towers[task].parameters(), *self.heads[task].parameters()]

    def backbone_parts(self) -> dict[str, nn.Module]:
        """The trunk and the towers."""
        return {"trunk": self.trunk, **by_task("towers", self.towers)}
