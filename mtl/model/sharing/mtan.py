"""Multi-task attention network (Liu et al., CVPR 2019, section 3.2, eq. 1 and 2): each task masks the shared maps.

Deviations: a mask is computed from the output of a stage alone, where the paper also takes the output of the stage's
first block (u = p in eq. 2), because a stage may be one block; the convolution that carries a task's features on to the
next stage is the task's own and strided, where the paper shares it between tasks and pools, so that the shared part has
one boundary; group norm in place of batch norm, so that samples stay apart.
"""

import math
from itertools import pairwise
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtl.model.heads import HeadSpec
from mtl.model.sharing.base import BoundaryModel, Shared, by_task
from mtl.model.stages import POOL, Backbone

_GROUPS = 8


@final
class MTAN(BoundaryModel):
    """A shared backbone, and attention modules of each task on its maps, which are the boundary.

    A map is masked where it is about to shrink: stages that keep its size count as one.

    Raises:
        ConfigError: the backbone is not a chain of feature maps.
    """

    def __init__(self, backbone: Backbone, heads: HeadSpec) -> None:
        super().__init__()
        self.tasks = heads.tasks
        self.masked = backbone.shrinking()
        self.backbone = backbone.until(POOL)
        sizes = [(backbone.maps or {})[self.backbone.part_stages[number].name] for number in self.masked]
        self.attention = nn.ModuleDict({task: _Attention(sizes) for task in self.tasks})
        pools = {} if heads.attention else {task: backbone.copied(POOL) for task in self.tasks}
        self.pools = nn.ModuleDict(pools)
        self.heads = heads.build(backbone.last_map()[0] if heads.attention else backbone.features)

    def forward_shared(self, images: Tensor) -> Shared:
        """The maps [n, C, H, W] that are masked, the largest first."""
        taps = self.backbone.part_taps(images)
        return tuple(taps[number] for number in self.masked)

    def forward_task(self, task: str, shared: Shared) -> Tensor:
        """One task's masks, pooling and head."""
        x = self.attention[task](shared)
        return self.heads.one(task, self.pools[task](x) if task in self.pools else x)

    def shared_parameters(self) -> list[nn.Parameter]:
        """The backbone's."""
        return list(self.backbone.parameters())

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """The attention modules', the pooling's where it has any, and the head's."""
        parts = [self.attention[task], self.heads[task], *([self.pools[task]] if task in self.pools else [])]
        return [p for part in parts for p in part.parameters()]

    def backbone_parts(self) -> dict[str, nn.Module]:
        """The backbone, and each task's copy of its pooling."""
        return {"backbone": self.backbone, **by_task("pools", self.pools)}


@final
class _Attention(nn.Module):
    """One task's modules. `sizes`: channels and side of each map."""

    def __init__(self, sizes: list[tuple[int, int]]) -> None:
        super().__init__()
        before = [(0, sizes[0][1]), *sizes[:-1]]
        self.masks = nn.ModuleList(
            _Mask(2 * c if old else c, c) for (old, _), (c, _) in zip(before, sizes, strict=True)
        )
        self.carry = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(old, c, 3, stride=max(large // side, 1), padding=1, bias=False),
                _norm(c),
                nn.ReLU(inplace=True),
            )
            for (old, large), (c, side) in pairwise(sizes)
        )

    def forward(self, maps: Shared) -> Tensor:
        """The last map, masked: [n, C, H, W]."""
        x = maps[0] * self.masks[0](maps[0])
        for carry, mask, shared in zip(self.carry, list(self.masks)[1:], maps[1:], strict=True):
            carried = carry(x)
            if carried.shape[2:] != shared.shape[2:]:  # a stage without padding: 55 px become 27, and here 28
                carried = F.interpolate(carried, size=shared.shape[2:])
            x = shared * mask(torch.cat([shared, carried], 1))
        return x


@final
class _Mask(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.hidden = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.norm = _norm(outputs)
        self.out = nn.Conv2d(outputs, outputs, 1, bias=False)
        self.out_norm = _norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """A mask in (0, 1), [n, outputs, H, W]."""
        return self.out_norm(self.out(self.norm(self.hidden(x)).relu())).sigmoid()


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(_GROUPS, channels), channels)
