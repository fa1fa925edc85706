"""How a step's gradients are formed and weighed: by losses alone, at the boundary, or exactly."""

import inspect
from typing import Literal

import torch
from torch import Tensor, nn

from mtl.balancing.base import Needs
from mtl.balancing.signals.amortised import Amortised
from mtl.balancing.signals.base import Ranks, Scale, Signal, Weigher
from mtl.balancing.signals.boundary import Boundary
from mtl.balancing.signals.exact import Exact
from mtl.balancing.signals.scalar import Scalar
from mtl.balancing.statistic import STATISTICS, Joint
from mtl.errors import ConfigError
from mtl.model import MultiTaskModel

__all__ = ["Boundary", "Exact", "Ranks", "Scalar", "Signal", "Weigher", "build_signal"]

Backend = Literal["scalar", "boundary", "exact"]


def build_signal(
    weigher: Weigher,
    model: MultiTaskModel,
    parallel: nn.Module,
    *,
    tasks: list[str],
    backend: Backend | None = None,
    statistic: Literal["joint", "samples", "linear"] = "joint",
    batch_norm: bool = False,
    refresh_steps: int = 1,
    lag: bool = False,
    accumulates: bool = False,
    images: Tensor,
    scale: Scale = lambda: 1.0,
) -> Signal:
    """The signal for a balancer.

    Args:
        model, parallel: the module, and the one whose backward averages gradients over ranks.
        backend: None is boundary where the balancer looks at gradients, else scalar.
        batch_norm: boundary: whether the shared part normalises over the batch, which statistic joint allows for.
        refresh_steps: exact: steps from one Gram matrix to the next.
        accumulates: whether a step may have more than one micro-batch.
        images: some, [n, 3, H, W], to try the heads on.
        scale: by what losses are multiplied for half precision, asked in each backward.

    Raises:
        ConfigError: the backend does not suit the balancer, the model or the rest.
    """
    needs, looks = weigher.needs, weigher.needs & (Needs.LOSSES | Needs.GRAM)
    backend = backend or ("boundary" if Needs.GRAM in needs else "scalar")
    if backend == "scalar" and Needs.GRAM in needs:
        raise _refused("The balancing method looks at gradients.", "backend scalar", "backend boundary or exact")
    if statistic != "joint" and backend == "scalar":
        raise _refused("Only the boundary knows balancing.statistic.", f"{statistic}, backend {backend}", "joint")
    if lag and not looks:
        raise _refused("balancing.lag has nothing to delay: the method looks at no losses or gradients.", "1", "0")
    if accumulates and looks and not lag and backend != "exact":
        raise ConfigError(
            "The balancing method looks at the whole batch, but a step has several micro-batches.",
            got="max_micro_batch below a worker's part of global_batch",
            expected="one micro-batch, or balancing.lag=1, or balancing.backend=exact",
            do="set one of these",
        )
    if backend == "scalar":
        return Scalar(weigher, parallel, scale, lag=lag)
    has_boundary = "boundary" in inspect.signature(model.forward).parameters
    if not has_boundary and (backend == "boundary" or refresh_steps > 1):
        raise _refused(
            "The model has no single boundary between shared part and heads.",
            f"backend {backend}, refresh_steps {refresh_steps}",
            "backend exact at every step, or scalar with a method that looks at no gradients",
        )
    if not any(parameter.requires_grad for parameter in model.shared_parameters()):
        raise _refused("No shared parameter is trained: there is nothing to balance.", backend, "backend scalar")
    if backend == "boundary":
        seen = Joint(batch_norm=batch_norm) if statistic == "joint" else STATISTICS[statistic]()
        return _tried(Boundary(weigher, parallel, scale, seen, lag=lag), model, images)
    exact = Exact(weigher, model, scale, model.shared_parameters(), [model.task_parameters(task) for task in tasks])
    if refresh_steps == 1:
        return exact
    held = _tried(Boundary(weigher, parallel, scale, None, lag=False), model, images)
    return Amortised(refresh_steps, exact, held)


def _tried(boundary: Boundary, model: MultiTaskModel, images: Tensor) -> Boundary:
    """`boundary`, once every head has computed from a view: one that changes its input would change the others' too."""
    training = model.training
    model.eval()
    try:
        with torch.enable_grad():
            model(images, boundary.fork)
    except RuntimeError as error:
        if "inplace" not in str(error):
            raise
        raise ConfigError(
            "A head changes the features in place, which all heads share.",
            got=str(error).partition(". ")[0],
            do="begin the head with an operation that is not in place, such as ReLU(inplace=False)",
        ) from error
    finally:
        model.train(training)
    return boundary


def _refused(what: str, got: str, expected: str) -> ConfigError:
    return ConfigError(what, got=got, expected=expected, do="see docs/balancing.md")
