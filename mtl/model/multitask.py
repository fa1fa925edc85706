"""One backbone, a head for each task; which parameters are shared is explicit, never guessed from names."""

from collections.abc import Mapping
from typing import final

from torch import Tensor, nn


@final
class MultiTaskModel(nn.Module):
    """Images [n, 3, H, W] to one output [n, outputs] for each task.

    Args:
        backbone: images to features [n, features].
        features: width of the features.
        outputs: width of each task's output, by task name.
        hidden: units of a hidden layer in each head; 0 makes heads linear.
        dropout: before each head.
    """

    def __init__(
        self, backbone: nn.Module, features: int, outputs: Mapping[str, int], hidden: int = 0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict({task: _head(features, width, hidden, dropout) for task, width in outputs.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Outputs by task."""
        features = self.backbone(images)
        return {task: head(features) for task, head in self.heads.items()}

    def shared_parameters(self) -> list[nn.Parameter]:
        """Parameters that every task trains."""
        return list(self.backbone.parameters())

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """Parameters that only `task` trains."""
        return list(self.heads[task].parameters())


def _head(features: int, outputs: int, hidden: int, dropout: float) -> nn.Module:
    layers: list[nn.Module] = [nn.Dropout(dropout)] if dropout else []
    if hidden:
        layers += [nn.Linear(features, hidden), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(hidden or features, outputs))
