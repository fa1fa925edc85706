"""Cross-stitch networks (Misra et al., CVPR 2016, eq. 1): a tower for each task, whose maps mix as they go.

Every task trains every tower, so all but the heads is shared, and each head reads another tensor: no single boundary.

Deviations: the mixing weights share the learning rate of the other parameters, where the paper's is 100 to 1000 times
larger; towers begin as copies of one backbone, where the paper first trains each on its own task.
"""

from typing import final

import torch
from torch import Tensor, nn

from mtl.model.heads import HeadSpec
from mtl.model.sharing.base import MultiTaskModel, by_task
from mtl.model.stages import POOL, Backbone, Part

_OWN = 0.9
"""A tower's first weight for its own map; the others share the rest (section 5.1: convex, mostly its own)."""


@final
class CrossStitch(MultiTaskModel):
    """K backbones, stitched where their maps are about to shrink (the paper: after each pooling).

    Raises:
        ConfigError: the backbone is not a chain of feature maps.
    """

    def __init__(self, backbone: Backbone, heads: HeadSpec) -> None:
        super().__init__()
        self.tasks = heads.tasks
        maps, stages, self.ends = backbone.maps or {}, backbone.stages, backbone.shrinking()
        width = backbone.last_map()[0] if heads.attention else backbone.features
        self.towers = nn.ModuleDict({task: backbone.copied(stages[0].name, POOL) for task in self.tasks})
        self.stitches = nn.ModuleList(_Stitch(len(self.tasks), maps[stages[end].name][0]) for end in self.ends)
        pools = {} if heads.attention else {task: backbone.copied(POOL) for task in self.tasks}
        self.pools = nn.ModuleDict(pools)
        self.heads = heads.build(width)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Outputs by task."""
        maps, towers = [images] * len(self.tasks), list(self.towers.values())
        begin = 0
        for stitch, end in zip(self.stitches, self.ends, strict=True):
            for number in range(begin, end + 1):
                maps = [_run(tower, number, x) for tower, x in zip(towers, maps, strict=True)]
            maps, begin = stitch(maps), end + 1
        ends = dict(zip(self.tasks, maps, strict=True))
        if self.pools:
            ends = {task: self.pools[task](x) for task, x in ends.items()}
        return {task: self.heads.one(task, x) for task, x in ends.items()}

    def shared_parameters(self) -> list[nn.Parameter]:
        """The towers' and the stitches'."""
        return [*self.towers.parameters(), *self.stitches.parameters()]

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """The pooling's where it has any, and the head's."""
        pooling = list(self.pools[task].parameters()) if task in self.pools else []
        return [*pooling, *self.heads[task].parameters()]

    def backbone_parts(self) -> dict[str, nn.Module]:
        """The towers and their pooling."""
        return {**by_task("towers", self.towers), **by_task("pools", self.pools)}


def _run(tower: nn.Module, stage: int, x: Tensor) -> Tensor:
    assert isinstance(tower, Part)
    return tower.run_stage(tower.part_stages[stage], x)


@final
class _Stitch(nn.Module):
    """K maps [n, C, H, W] to K mixtures of them, with weights for each channel."""

    def __init__(self, tasks: int, channels: int) -> None:
        super().__init__()
        self.shape = tasks, tasks, channels
        other = (1 - _OWN) / (tasks - 1) if tasks > 1 else 0.0
        mix = torch.full((tasks, tasks), other).fill_diagonal_(_OWN if tasks > 1 else 1.0)
        # Flat, so that weight decay, which spares parameters of one axis, does not pull the maps apart from each other.
        self.mix = nn.Parameter(mix[:, :, None].expand(self.shape).reshape(-1).clone())

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """The mixtures, in the same order."""
        mix = self.mix.view(self.shape)[..., None, None]
        rows: list[Tensor] = []
        for own in mix:
            x = maps[0] * own[0]
            for weight, other in zip(own[1:], maps[1:], strict=True):
                x = torch.addcmul(x, weight, other)
            rows.append(x)
        return rows
