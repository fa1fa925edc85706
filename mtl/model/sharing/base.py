"""What every sharing pattern is: images to one output a task, and which parameters are whose."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import final

from torch import Tensor, nn

Shared = tuple[Tensor, ...]
"""Every tensor that leaves the shared part in one forward; axis 0 is the sample."""

Boundary = Callable[[Shared], Sequence[Shared]]
"""Hands what leaves the shared part to the tasks: one view of it for each, in the model's order."""


class MultiTaskModel(nn.Module, ABC):
    """Images [n, 3, H, W] to one output [n, outputs] for each task.

    Shared and task parameters are disjoint and together all there are. The loss of one task reaches its own parameters
    and every shared one, and no others.

    Attributes:
        tasks: their names, in order.
    """

    tasks: tuple[str, ...]

    @abstractmethod
    def shared_parameters(self) -> list[nn.Parameter]:
        """Parameters that every task trains."""

    @abstractmethod
    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """Parameters that only `task` trains."""

    @abstractmethod
    def backbone_parts(self) -> dict[str, nn.Module]:
        """The modules taken or copied from the backbone, by their path in this one, the earliest stages first."""


class BoundaryModel(MultiTaskModel):
    """A model whose tasks depend on its shared parameters only through one tuple of tensors."""

    @abstractmethod
    def forward_shared(self, images: Tensor) -> Shared:
        """What leaves the shared part."""

    @abstractmethod
    def forward_task(self, task: str, shared: Shared) -> Tensor:
        """One task's output [n, outputs]."""

    def forward_tasks(self, shared: Shared) -> dict[str, Tensor]:
        """The outputs of all tasks: what `forward_task` gives for each, at a lower price where there is one."""
        return {task: self.forward_task(task, shared) for task in self.tasks}

    @final
    def forward(self, images: Tensor, boundary: Boundary | None = None) -> dict[str, Tensor]:
        """Outputs by task. With a `boundary`, each task computes from the view that it hands out for it."""
        shared = self.forward_shared(images)
        if boundary is None:
            return self.forward_tasks(shared)
        views = boundary(shared)
        return {task: self.forward_task(task, view) for task, view in zip(self.tasks, views, strict=True)}


def by_task(path: str, modules: nn.ModuleDict) -> dict[str, nn.Module]:
    """The modules of a dictionary that lies at `path`, by their own paths."""
    return {f"{path}.{task}": module for task, module in modules.items()}
