"""A compiled backbone: reached by every pattern, the same numbers, the same names."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._functorch import config as functorch

from mtl.config import Model
from mtl.config_model import Sharing
from mtl.errors import ConfigError
from mtl.model import PATTERNS
from mtl.parts import compile_backbone
from tests.helpers.jobs import tiny_config
from tests.unit.model.test_sharing import images, loss, made

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}

WHOLE = [pattern for pattern in PATTERNS if pattern not in ("mtan", "cross-stitch")]


@pytest.fixture
def counted() -> tuple[list[int], Callable[..., Any]]:
    """A backend that runs what it is given as it is, and remembers how many operations that were."""
    torch.compiler.reset()
    found: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable[..., Any]:
        found.append(len(graph.graph.nodes))
        return graph.forward

    return found, backend


def convolutions(model: nn.Module) -> int:
    return sum(isinstance(module, nn.Conv2d) for module in model.modules())


# A tower's input is no leaf, and dynamo looks at the gradient of every input.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("pattern", WHOLE)
def test_every_pattern_computes_with_the_compiled_backbone(
    pattern: str, counted: tuple[list[int], Callable[..., Any]]
) -> None:
    plain, model = made(pattern), made(pattern)
    found, backend = counted
    compile_backbone(model, traversed_again=False, backend=backend)
    assert model.state_dict().keys() == plain.state_dict().keys()
    for each in (plain, model):
        loss(each(images())).backward()
    assert sum(found) > convolutions(model) // len(model.tasks)
    for (name, parameter), expected in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, msg=name, **EXACT)


def test_graphs_of_several_backwards_keep_their_buffers() -> None:
    with functorch.patch(donated_buffer=True):
        compile_backbone(made("hard"), traversed_again=False)
        assert functorch.donated_buffer
        compile_backbone(made("hard"), traversed_again=True)
        assert not functorch.donated_buffer


@pytest.mark.parametrize("pattern", ["mtan", "cross-stitch"])
def test_a_backbone_that_is_taken_apart_is_refused(pattern: Any) -> None:
    with pytest.raises(ConfigError, match="compile needs a backbone that runs in one piece"):
        tiny_config("data", "runs", compile=True, model=Model(sharing=Sharing(pattern=pattern), batch_norm="local"))
