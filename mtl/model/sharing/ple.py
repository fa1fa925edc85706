"""Progressive layered extraction (Tang et al., RecSys 2020, section 4.3, eq. 5 to 7): CGC in several levels.

Below the last level a shared gate mixes the experts of all tasks, so a task's experts there are trained by every task:
they are shared parameters, and no single boundary separates shared from task parameters.

Deviation: as in `mmoe`, experts are one layer over the features of a shared backbone.
"""

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

from mtl.model.heads import HeadSpec
from mtl.model.sharing.base import MultiTaskModel
from mtl.model.sharing.mmoe import Experts, mixed
from mtl.model.stages import Backbone


@final
class PLE(MultiTaskModel):
    """Levels of CGC, each fed by the one before it; without a single boundary.

    Args:
        experts: number of shared experts of a level.
        task_experts: number of each task's own.
        expert_width: width of an expert's output, W.
        levels: two or more; one is `CGC`.
    """

    def __init__(
        self, backbone: Backbone, heads: HeadSpec, experts: int, task_experts: int, expert_width: int, levels: int
    ) -> None:
        super().__init__()
        assert levels >= 2, levels
        self.tasks = heads.tasks
        self.backbone = backbone.whole()
        widths = [backbone.features] + [expert_width] * (levels - 1)
        self.levels = nn.ModuleList(
            _Level(width, self.tasks, experts, task_experts, expert_width, last=number == levels - 1)
            for number, width in enumerate(widths)
        )
        self.heads = heads.build(expert_width)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Outputs by task."""
        shared: Tensor = self.backbone(images)
        own: Mapping[str, Tensor] = {task: shared for task in self.tasks}
        for level in self.levels:
            own, shared = level(own, shared)
        return {task: self.heads.one(task, own[task]) for task in self.tasks}

    def shared_parameters(self) -> list[nn.Parameter]:
        """All but what feeds the heads alone: of the last level the shared experts, of the others nearly everything."""
        private = {p for task in self.tasks for p in self.task_parameters(task)}
        return [p for p in self.parameters() if p not in private]

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """The gate into the last level, the last level's own experts and gate, and the head."""
        *_, before, last = self.levels
        assert isinstance(before, _Level)
        assert isinstance(last, _Level)
        parts = (before.gates[task], last.own[task], last.gates[task], self.heads[task])
        return [p for part in parts for p in part.parameters()]

    def backbone_parts(self) -> dict[str, nn.Module]:
        """The backbone."""
        return {"backbone": self.backbone}


@final
class _Level(nn.Module):
    """Experts and gates of one level. `last`: no level follows, so there is no shared gate."""

    def __init__(
        self, width: int, tasks: tuple[str, ...], experts: int, task_experts: int, expert_width: int, *, last: bool
    ) -> None:
        super().__init__()
        total = experts + len(tasks) * task_experts
        self.experts = Experts(width, experts, expert_width)
        self.own = nn.ModuleDict({task: Experts(width, task_experts, expert_width) for task in tasks})
        self.gates = nn.ModuleDict({task: nn.Linear(width, task_experts + experts, bias=False) for task in tasks})
        self.gate = None if last else nn.Linear(width, total, bias=False)

    def forward(self, own: Mapping[str, Tensor], shared: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """What each task hands on, [n, W], and what they share, [n, W]."""
        experts = self.experts(shared)
        owned = {task: self.own[task](x) for task, x in own.items()}
        made = {t: mixed(self.gates[t](x), torch.cat([owned[t], experts], 1)) for t, x in own.items()}
        if self.gate is not None:
            shared = mixed(self.gate(shared), torch.cat([*owned.values(), experts], 1))
        return made, shared
