"""The last layers, one head a task, computed together where that is the same and cheaper.

Each task has parameters of its own, named heads.<task>, so tasks come and go without renaming the others.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtl.errors import ConfigError


class Heads(nn.ModuleDict, ABC):
    """A head for each task, by name."""

    @abstractmethod
    def forward(self, shared: Tensor) -> dict[str, Tensor]:
        """Outputs [n, outputs] of all tasks, in order, from what they have in common."""

    @abstractmethod
    def one(self, task: str, own: Tensor) -> Tensor:
        """The output [n, outputs] of one task."""


@dataclass(frozen=True)
class HeadSpec:
    """What heads are to be.

    Attributes:
        outputs: width of each task's output, by task name.
        hidden: units of a hidden layer in each head; 0 makes heads linear.
        dropout: before each head; each task drops units of its own.
        attention: heads weigh the positions of a feature map by themselves, in place of the backbone's pooling.
    """

    outputs: Mapping[str, int]
    hidden: int = 0
    dropout: float = 0.0
    attention: bool = False

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, in order."""
        return tuple(self.outputs)

    def build(self, width: int) -> Heads:
        """Heads over features [n, width], or over maps [n, width, H, W] where they attend.

        Raises:
            ConfigError: a task has a name that torch does not let a module have.
        """
        refused = [task for task in self.outputs if task in _RESERVED]
        if refused:
            raise ConfigError(
                f"A task can not be named '{refused[0]}': torch's modules use that name.", do="rename the task"
            )
        kind = AttentionHeads if self.attention else PlainHeads
        return kind(width, self.outputs, self.hidden, self.dropout)


@final
class PlainHeads(Heads):
    """Linear or MLP heads over features [n, width]."""

    def __init__(self, width: int, outputs: Mapping[str, int], hidden: int, dropout: float) -> None:
        super().__init__({task: Head(width, size, hidden, dropout) for task, size in outputs.items()})

    def forward(self, shared: Tensor) -> dict[str, Tensor]:
        """Outputs of all tasks from features [n, width]: the first layers of all heads are one product."""
        heads = _heads(self)
        if any(head.drops for head in heads.values()):
            return {task: head(shared) for task, head in heads.items()}
        firsts = [head.first for head in heads.values()]
        weight, bias = _joined([f.weight for f in firsts]), _joined([f.bias for f in firsts])
        parts = F.linear(shared, weight, bias).split([f.out_features for f in firsts], dim=1)
        return {task: head.rest(part) for (task, head), part in zip(heads.items(), parts, strict=True)}

    def one(self, task: str, own: Tensor) -> Tensor:
        """The output of one task from features [n, width]."""
        return self[task](own)


@final
class AttentionHeads(Heads):
    """Heads that pool a map [n, width, H, W] each in its own way, then are linear or MLPs.

    A position weighs softmax(query . x / sqrt(width)), one query a task: attention pooling of Ilse et al. 2018, eq. 7
    and 8, with a linear score in place of their two-layer one. Queries begin at zero, which is mean pooling.
    """

    def __init__(self, width: int, outputs: Mapping[str, int], hidden: int, dropout: float) -> None:
        super().__init__({task: _AttentionHead(width, size, hidden, dropout) for task, size in outputs.items()})

    def forward(self, shared: Tensor) -> dict[str, Tensor]:
        """Outputs of all tasks from a map [n, width, H, W]: they attend in two products."""
        heads = cast("dict[str, _AttentionHead]", dict(self.items()))
        pooled = attend(shared, torch.stack([head.query for head in heads.values()]))
        return {task: head.head(own) for (task, head), own in zip(heads.items(), pooled.unbind(1), strict=True)}

    def one(self, task: str, own: Tensor) -> Tensor:
        """The output of one task from a map [n, width, H, W]."""
        head = cast("_AttentionHead", self[task])
        return head.head(attend(own, head.query[None])[:, 0])


def attend(maps: Tensor, queries: Tensor) -> Tensor:
    """Means over the positions of maps [n, C, H, W], weighed by each of the queries [K, C]: [n, K, C]."""
    positions = maps.flatten(2).transpose(1, 2)  # [n, H * W, C]
    scores = positions @ queries.T * queries.shape[1] ** -0.5
    return scores.softmax(1).transpose(1, 2) @ positions


@final
class Head(nn.Module):
    """Features [n, width] to outputs [n, outputs]: dropout, a hidden layer with ReLU if wanted, a linear layer."""

    def __init__(self, width: int, outputs: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.hidden = nn.Linear(width, hidden) if hidden else None
        self.out = nn.Linear(hidden or width, outputs)

    @property
    def drops(self) -> bool:
        """Whether this forward drops units."""
        return self.training and self.drop.p > 0

    @property
    def first(self) -> nn.Linear:
        """The layer that reads the features."""
        return self.hidden or self.out

    def rest(self, x: Tensor) -> Tensor:
        """What follows the first layer."""
        return self.out(x.relu()) if self.hidden else x

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [n, outputs]."""
        return self.rest(self.first(self.drop(x)))


@final
class _AttentionHead(nn.Module):
    def __init__(self, width: int, outputs: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(width))
        self.head = Head(width, outputs, hidden, dropout)


def _joined(tensors: list[Tensor]) -> Tensor:
    return torch.cat(tensors) if len(tensors) > 1 else tensors[0]


def _heads(heads: nn.ModuleDict) -> dict[str, Head]:
    return cast("dict[str, Head]", dict(heads.items()))


_RESERVED = frozenset(dir(nn.ModuleDict()))
