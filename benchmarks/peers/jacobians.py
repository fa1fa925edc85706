"""The Jacobian of the tasks as others take it, on a model with a boundary: what `exact_over_peers` compares with.

A peer gets the shared parameters' gradients of every task, weighs them, and leaves the combination in `grad`; heads get
their own task's gradient, as with the exact backend.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from mtl.balancing.base import Balancer, TaskStats
from mtl.model import BoundaryModel

Losses = Callable[[dict[str, Tensor]], list[Tensor]]
"""Mean losses of the tasks, K scalars, from outputs by task."""

Backward = Callable[[], object]


def backwards(model: BoundaryModel, images: Tensor, losses: Losses, balancer: Balancer) -> dict[str, Backward]:
    """Forward and backward of each peer, by name: LibMTL's way, and TorchJD's with each chunk size if it is there."""
    made: dict[str, Backward] = {"LibMTL's way": lambda: one_by_one(model, images, losses, balancer)}
    if find_spec("torchjd") is not None:
        from torchjd.aggregation import UPGrad

        aggregator = UPGrad()
        for chunk in (1, None):
            made[f"TorchJD, parallel_chunk_size={chunk}"] = lambda chunk=chunk: torchjd(
                model, images, losses, aggregator, chunk
            )
    return made


def one_by_one(model: BoundaryModel, images: Tensor, losses: Losses, balancer: Balancer) -> None:
    """As LibMTL does: a backward for each task into `grad`, which is copied to a row and cleared."""
    shared = [parameter for parameter in model.shared_parameters() if parameter.requires_grad]
    each = losses(model(images))
    rows = torch.zeros(len(each), sum(parameter.numel() for parameter in shared))
    for k, loss in enumerate(each):
        loss.backward(retain_graph=k + 1 < len(each))
        rows[k] = torch.cat([_gradient(parameter).reshape(-1) for parameter in shared])
        for parameter in shared:
            parameter.grad = None
    ones = torch.ones(len(each), dtype=torch.float64)
    weights = balancer.weights(TaskStats(ones, 0, losses=ones, gram=rows @ rows.T))
    _leave(shared, sum_of(weights, rows))


def torchjd(model: BoundaryModel, images: Tensor, losses: Losses, aggregator: Any, chunk: int | None) -> None:
    """As TorchJD's documentation shows for tasks with shared features."""
    from torchjd.autojac import jac_to_grad, mtl_backward

    shared = model.forward_shared(images)
    outputs = {task: model.forward_task(task, shared) for task in model.tasks}
    mtl_backward(losses(outputs), features=shared, parallel_chunk_size=chunk)
    jac_to_grad(model.shared_parameters(), aggregator)


def sum_of(weights: Tensor, rows: Tensor) -> Tensor:
    """sum_k w_k g_k, term by term."""
    return sum((weight * row for weight, row in zip(weights.to(rows), rows, strict=True)), torch.zeros_like(rows[0]))


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _leave(parameters: Sequence[torch.nn.Parameter], flat: Tensor) -> None:
    parts = flat.split([parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view(parameter.shape).clone()
