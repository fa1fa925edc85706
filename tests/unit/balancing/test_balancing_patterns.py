"""Every sharing pattern with every backend: offered where there is what it looks at, and then weighed as promised."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl.balancing.base import TaskStats
from mtl.balancing.build import build_balancer
from mtl.balancing.signals import Ranks, Signal, Weigher, build_signal
from mtl.errors import ConfigError
from mtl.model import PATTERNS
from tests.helpers.batches import CPU
from tests.unit.model.test_sharing import BOUNDED, EXACT, OUTPUTS, images, made

WEIGHTS = torch.tensor([0.5, 2.0, 1.25], dtype=torch.float64)
PREFERENCE = [1.0, 0.5, 2.0]
OFFERED = [
    (pattern, backend)
    for pattern in PATTERNS
    for backend in ("scalar", "boundary", "exact")
    if backend != "boundary" or pattern in BOUNDED
]


def signal_of(model: Any, method: str, **arguments: Any) -> Signal:
    balancer = build_balancer(method, len(OUTPUTS), 0)
    if method == "static":
        balancer.weights = lambda _: WEIGHTS  # type: ignore[method-assign, assignment]
    weigher = Weigher(balancer, PREFERENCE, ("binary",) * len(OUTPUTS), Ranks(1, CPU))
    return build_signal(weigher, model, model, tasks=list(OUTPUTS), images=images(2), **arguments)


def losses(outputs: dict[str, Tensor]) -> Tensor:
    return torch.stack([output.square().sum() for output in outputs.values()])


def by_hand(model: nn.Module) -> list[dict[str, Tensor]]:
    """Gradients of each task's own weight times its mean loss, by parameter."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    means = losses(model(images())) / 4 * torch.tensor(PREFERENCE, dtype=torch.float64)
    each = [torch.autograd.grad(mean, parameters, retain_graph=True, materialize_grads=True) for mean in means]
    return [dict(zip(names, found, strict=True)) for found in each]


@pytest.mark.parametrize(("pattern", "backend"), OFFERED)
def test_shared_parameters_get_the_weighted_sum(pattern: str, backend: Any) -> None:
    model = made(pattern)
    each = by_hand(model)
    signal = signal_of(model, "static", backend=backend)
    signal.begin(TaskStats(torch.full((3,), 4.0, dtype=torch.float64), 0))
    signal.backward(losses(signal.forward(images())), True)
    assert (signal.end().gram is None) == (backend == "scalar")
    shared = {id(p) for p in model.shared_parameters()}
    for name, parameter in model.named_parameters():
        weights = WEIGHTS if backend == "scalar" or id(parameter) in shared else torch.ones_like(WEIGHTS)
        expected = sum((w * own[name] for w, own in zip(weights, each, strict=True)), torch.zeros_like(parameter))
        torch.testing.assert_close(parameter.grad, expected, msg=name, **EXACT)


@pytest.mark.parametrize("pattern", [pattern for pattern in PATTERNS if pattern not in BOUNDED])
@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("mgda", {}),
        ("mgda", {"backend": "boundary"}),
        ("static", {"backend": "boundary"}),
        ("mgda", {"backend": "exact", "refresh_steps": 2}),
    ],
)
def test_without_a_single_boundary_none_is_made_up(pattern: str, method: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="no single boundary") as caught:
        signal_of(made(pattern), method, **arguments)
    assert "exact at every step, or scalar" in str(caught.value.expected)
