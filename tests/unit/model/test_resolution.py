"""Images of other sizes than size_px: tried before anything starts, refused in words, compiled once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl.errors import ConfigError
from mtl.model import PATTERNS, HeadSpec, build_backbone
from mtl.model.resolution import check_sizes
from mtl.parts import compile_backbone
from tests.unit.model.test_sharing import CASES, OUTPUTS, loss, made
from tests.unit.test_compile import counted as counted  # a fixture


@pytest.mark.parametrize(("pattern", "attention"), CASES)
def test_convolutions_take_any_size_in_every_pattern(pattern: str, attention: bool) -> None:
    model = made(pattern, attention).float()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    check_sizes(model, "resnet9", 16, {"augment.eval_size_px": 24, "augment.grow_from_px": 8})
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "args", "trained_px", "evaluated_px", "said"),
    [
        ("vit_b_16", {"image_size": 32}, 32, 48, "Expected 32 but got 48"),
        ("tests.helpers.backbones:small", {}, 16, 24, "shapes cannot be multiplied"),
    ],
)
def test_a_model_for_one_size_is_refused_in_one_error(
    name: str, args: dict[str, object], trained_px: int, evaluated_px: int, said: str
) -> None:
    model = PATTERNS["hard"](build_backbone(name, args, trained_px), HeadSpec(OUTPUTS))
    check_sizes(model, name, trained_px, {"augment.eval_size_px": trained_px, "augment.grow_from_px": None})
    with pytest.raises(ConfigError, match=said) as caught:
        check_sizes(model, name, trained_px, {"augment.eval_size_px": evaluated_px})
    error = caught.value
    assert f"'{name}'" in error.what
    assert error.got == f"augment.eval_size_px = {evaluated_px}"
    assert f"augment.size_px = {trained_px}" in str(error.expected)
    assert "leave augment.eval_size_px out" in str(error.do)


def pooled() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_two_sizes_are_compiled_once_each_and_not_again(counted: tuple[list[int], Callable[..., Any]]) -> None:
    model = PATTERNS["hard"](build_backbone(f"{__name__}:pooled", {}, 16), HeadSpec(OUTPUTS))
    found, backend = counted
    compile_backbone(model, traversed_again=False, backend=backend)

    def images(n: int, size: int) -> Tensor:
        return torch.randn(n, 3, size, size)

    after_epoch: list[int] = []
    for _ in range(4):
        model.train()
        for _ in range(3):
            loss(model(images(8, 16))).backward()
        model.eval()
        for n in (8, 8, 3):  # the last batch of a split is smaller
            with torch.no_grad():
                assert all(len(output) == n for output in model(images(n, 24)).values())
        after_epoch.append(len(found))
    assert after_epoch[0] >= 2
    assert after_epoch[1:] == [after_epoch[1]] * 3
    assert after_epoch[1] <= after_epoch[0] + 1
