"""Backbones of timm: an extra, named where it is missing; stages only where they are what the model computes."""

import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl.errors import ConfigError
from mtl.model import build_backbone
from mtl.model.from_timm import timm_stages
from tests.helpers.backbones import Backwards


class Chain(nn.Module):
    """A forward that runs the children in turn, after timm's ResNet."""

    def __init__(self, functional: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.bn = nn.BatchNorm2d(8)
        self.stages = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(inplace=True))
        self.pool = _Mean()
        self.functional = functional

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.dropout(self.stages(self.bn(self.conv(x))), self.functional, self.training)
        return self.pool(x)


class _Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A timm with one model; what it was called with."""
    calls: list[dict[str, Any]] = []

    def create_model(name: str, **args: Any) -> nn.Module:
        calls.append({"name": name, **args})
        return Chain()

    timm: Any = types.ModuleType("timm")
    timm.is_model = lambda name: name == "chain"
    timm.list_models = lambda pattern: ["chain"] if pattern == "*chain*" else []
    timm.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", timm)
    return calls


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match="needs timm") as caught:
        build_backbone("timm:resnet18", {}, 32)
    assert "timm" in str(caught.value.expected)
    assert "[timm]" in str(caught.value.do)


def test_a_model_without_its_classifier(fake: list[dict[str, Any]]) -> None:
    backbone = build_backbone("timm:chain", {"drop_rate": 0.0}, 16)
    assert fake == [{"name": "chain", "pretrained": False, "num_classes": 0, "drop_rate": 0.0}]
    assert [stage.name for stage in backbone.stages] == ["conv", "bn", "stages.0", "stages.1", "pool"]
    assert (backbone.features, backbone.last_map()) == (8, (8, 12))


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    ("name", "args", "message"),
    [("chain", {"pretrained": True}, "not downloaded"), ("chainz", {}, "no model 'chainz'")],
)
def test_what_timm_can_not_give(name: str, args: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_backbone(f"timm:{name}", args, 16)


def test_a_model_that_does_more_than_its_children_in_turn_has_no_stages() -> None:
    assert timm_stages(Chain(), 16)
    assert timm_stages(Chain(functional=0.5), 16) == ()  # differs in training only
    assert timm_stages(Backwards(), 16) == ()


def test_the_trial_leaves_no_trace() -> None:
    net = Chain()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    timm_stages(net, 16)
    assert torch.rand(1) == expected
    assert net.training
    assert all(tensor.equal(before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "vit_tiny_patch16_224"])
def test_models_of_timm_itself(name: str) -> None:
    pytest.importorskip("timm")
    backbone = build_backbone(f"timm:{name}", {}, 224 if name.startswith("vit") else 64)
    assert bool(backbone.stages) == (not name.startswith("vit"))
    assert backbone.features > 0
