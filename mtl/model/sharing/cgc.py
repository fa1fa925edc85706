"""Customized gate control (Tang et al., RecSys 2020, section 4.2, eq. 1 to 4): shared experts, and some of each task's
own.

Deviation: as in `mmoe`, experts are one layer over the features of a shared backbone.
"""

from typing import final

import torch
from torch import Tensor, nn

from mtl.model.heads import HeadSpec
from mtl.model.sharing.base import BoundaryModel, Shared
from mtl.model.sharing.mmoe import Experts, mixed
from mtl.model.stages import Backbone


@final
class CGC(BoundaryModel):
    """Each task's gate mixes its own experts and the shared ones. Features and shared experts are the boundary.

    Args:
        experts: number of shared experts, S.
        task_experts: number of each task's own.
        expert_width: width of an expert's output, W.
    """

    def __init__(self, backbone: Backbone, heads: HeadSpec, experts: int, task_experts: int, expert_width: int) -> None:
        super().__init__()
        self.tasks = heads.tasks
        width = backbone.features
        self.backbone = backbone.whole()
        self.experts = Experts(width, experts, expert_width)
        self.own = nn.ModuleDict({task: Experts(width, task_experts, expert_width) for task in self.tasks})
        self.gates = nn.ModuleDict({t: nn.Linear(width, task_experts + experts, bias=False) for t in self.tasks})
        self.heads = heads.build(expert_width)

    def forward_shared(self, images: Tensor) -> Shared:
        """Features [n, D] and shared experts [n, S, W]."""
        features = self.backbone(images)
        return features, self.experts(features)

    def forward_task(self, task: str, shared: Shared) -> Tensor:
        """The task's own experts and the shared ones, mixed by its gate, and the head."""
        features, experts = shared
        chosen = torch.cat([self.own[task](features), experts], 1)
        return self.heads.one(task, mixed(self.gates[task](features), chosen))

    def shared_parameters(self) -> list[nn.Parameter]:
        """The backbone's and the shared experts'."""
        return [*self.backbone.parameters(), *self.experts.parameters()]

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """The own experts', the gate's and the head's."""
        return [p for part in (self.own, self.gates, self.heads) for p in part[task].parameters()]

    def backbone_parts(self) -> dict[str, nn.Module]:
        """The backbone."""
        return {"backbone": self.backbone}
