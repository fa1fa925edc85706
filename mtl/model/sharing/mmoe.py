"""Multi-gate mixture of experts (Ma et al., KDD 2018, eq. 6 and 7).

Deviation: the experts read the features of a shared backbone rather than the input, and each is one linear layer with
ReLU; a mixture of whole convolutional networks would cost as many backbones as there are experts.
"""

from typing import final

from torch import Tensor, nn

from mtl.model.heads import HeadSpec
from mtl.model.sharing.base import BoundaryModel, Shared
from mtl.model.stages import Backbone


@final
class MMoE(BoundaryModel):
    """Experts that all tasks share, and a gate for each task that mixes them. Features and experts are the boundary.

    Args:
        experts: their number, E.
        expert_width: width of an expert's output, W.
    """

    def __init__(self, backbone: Backbone, heads: HeadSpec, experts: int, expert_width: int) -> None:
        super().__init__()
        self.tasks = heads.tasks
        self.backbone = backbone.whole()
        self.experts = Experts(backbone.features, experts, expert_width)
        self.gates = nn.ModuleDict({task: nn.Linear(backbone.features, experts, bias=False) for task in self.tasks})
        self.heads = heads.build(expert_width)

    def forward_shared(self, images: Tensor) -> Shared:
        """Features [n, D] and experts [n, E, W]."""
        features = self.backbone(images)
        return features, self.experts(features)

    def forward_task(self, task: str, shared: Shared) -> Tensor:
        """The experts, mixed by one gate, and the head."""
        features, experts = shared
        return self.heads.one(task, mixed(self.gates[task](features), experts))

    def shared_parameters(self) -> list[nn.Parameter]:
        """The backbone's and the experts'."""
        return [*self.backbone.parameters(), *self.experts.parameters()]

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """The gate's and the head's."""
        return [*self.gates[task].parameters(), *self.heads[task].parameters()]

    def backbone_parts(self) -> dict[str, nn.Module]:
        """The backbone."""
        return {"backbone": self.backbone}


@final
class Experts(nn.Module):
    """E linear layers with ReLU, as one product: [n, D] to [n, E, W]."""

    def __init__(self, width: int, experts: int, expert_width: int) -> None:
        super().__init__()
        self.shape = experts, expert_width
        self.linear = nn.Linear(width, experts * expert_width)

    def forward(self, x: Tensor) -> Tensor:
        """Every expert's output."""
        return self.linear(x).relu().unflatten(1, self.shape)


def mixed(scores: Tensor, experts: Tensor) -> Tensor:
    """Experts [n, E, W], weighed by the softmax of scores [n, E]: [n, W]."""
    return (scores.softmax(1)[:, None] @ experts)[:, 0]
