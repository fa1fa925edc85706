"""Backbones by name, and clear errors for those that can not be one."""

import pytest
import torch

from mtl.errors import ConfigError
from mtl.model import build_backbone

OWN = "tests.helpers.backbones:"


@pytest.mark.parametrize(
    ("name", "size_px", "features"),
    [("resnet18", 32, 512), ("mobilenet_v3_small", 32, 1024), ("convnext_tiny", 32, 768)],
)
def test_a_torchvision_model_loses_its_last_layer(name: str, size_px: int, features: int) -> None:
    backbone, width = build_backbone(name, {}, size_px)
    assert width == features
    assert backbone.training
    assert backbone.eval()(torch.zeros(1, 3, size_px, size_px)).shape == (1, features)


@pytest.mark.slow
def test_a_transformer_of_another_image_size() -> None:
    backbone, width = build_backbone("vit_b_16", {"image_size": 32}, 32)
    assert width == 768
    assert backbone(torch.zeros(1, 3, 32, 32)).shape == (1, width)


def test_arguments_reach_the_model() -> None:
    _, width = build_backbone("mobilenet_v3_small", {"reduced_tail": True}, 32)
    assert width == 512
    _, width = build_backbone("mtl.model.resnet9:resnet9", {"width": 16}, 32)
    assert width == 128


def test_the_trial_run_leaves_no_trace() -> None:
    torch.manual_seed(1)
    backbone, _ = build_backbone("mtl.model.resnet9:resnet9", {"width": 8}, 16)
    after = torch.rand(1)
    torch.manual_seed(1)
    from mtl.model.resnet9 import resnet9

    plain = resnet9(8)
    assert torch.rand(1) == after
    for name, tensor in plain.state_dict().items():
        assert tensor.equal(backbone.state_dict()[name]), name


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("resnet19", {}, "There is no backbone 'resnet19'"),
        ("resnet18", {"depth": 3}, "can not be built"),
        ("squeezenet1_0", {}, "is not linear"),
        ("inception_v3", {"init_weights": False}, "outputs beside its features"),
        ("maxvit_t", {}, "does not accept images of 32 px"),
        ("no.such.module:net", {}, "can not be imported"),
        (":net", {}, "can not be built"),
        (OWN + "nothing", {}, "can not be imported"),
        (OWN + "small", {"depth": 3}, "can not be built"),
        (OWN + "number", {}, r"must return a torch\.nn\.Module"),
        (OWN + "spatial", {}, "must return features"),
        ("mtl.model.resnet9:resnet9", {"norm": "layer"}, "norm must be batch or group"),
        ("mtl.model.resnet9:resnet9", {"width": 4}, "width must be a multiple of 8"),
    ],
)
def test_what_can_not_be_a_backbone(name: str, args: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_backbone(name, args, 32)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        build_backbone("resnet", {}, 32)
    assert "resnet50" in str(caught.value)
    assert "module:callable" in str(caught.value)


def test_images_too_small_for_the_backbone() -> None:
    with pytest.raises(ConfigError, match="does not accept images of 8 px"):
        build_backbone("mtl.model.resnet9:resnet9", {"stem_stride": 2}, 8)
