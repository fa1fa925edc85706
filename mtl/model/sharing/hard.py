"""Hard sharing (Caruana 1997): one backbone, a head for each task."""

from typing import final

from torch import Tensor, nn

from mtl.model.heads import HeadSpec
from mtl.model.sharing.base import BoundaryModel, Shared
from mtl.model.stages import POOL, Backbone


@final
class HardSharing(BoundaryModel):
    """Every task reads the same features, or the same feature map where heads attend: the boundary.

    Raises:
        ConfigError: heads attend, and the backbone gives no feature map.
    """

    def __init__(self, backbone: Backbone, heads: HeadSpec) -> None:
        super().__init__()
        self.tasks = heads.tasks
        width = backbone.last_map()[0] if heads.attention else backbone.features
        self.backbone: nn.Module = backbone.until(POOL) if heads.attention else backbone.whole()
        self.heads = heads.build(width)

    def forward_shared(self, images: Tensor) -> Shared:
        """Features [n, D], or a map [n, C, H, W]."""
        return (self.backbone(images),)

    def forward_task(self, task: str, shared: Shared) -> Tensor:
        """One head."""
        return self.heads.one(task, shared[0])

    def forward_tasks(self, shared: Shared) -> dict[str, Tensor]:
        """All heads."""
        return self.heads(shared[0])

    def shared_parameters(self) -> list[nn.Parameter]:
        """The backbone's."""
        return list(self.backbone.parameters())

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """The head's."""
        return list(self.heads[task].parameters())

    def backbone_parts(self) -> dict[str, nn.Module]:
        """The backbone."""
        return {"backbone": self.backbone}
