"""Backbones by name, and clear errors for those that can not be one."""

import copy

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
    backbone = build_backbone(name, {}, size_px)
    assert backbone.features == features
    assert backbone.net.training
    assert backbone.whole().eval()(torch.zeros(1, 3, size_px, size_px)).shape == (1, features)


@pytest.mark.slow
def test_a_transformer_of_another_image_size() -> None:
    backbone = build_backbone("vit_b_16", {"image_size": 32}, 32)
    assert backbone.features == 768
    assert not backbone.stages
    assert backbone.whole()(torch.zeros(1, 3, 32, 32)).shape == (1, 768)


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("resnet18", "stem layer1 layer2 layer3 layer4 pool"),
        ("regnet_y_400mf", "stem trunk_output.block1 trunk_output.block2 trunk_output.block3 trunk_output.block4 pool"),
        ("shufflenet_v2_x0_5", "stem stage2 stage3 stage4 conv5 pool"),
        ("efficientnet_b0", " ".join(f"features.{i}" for i in range(9)) + " pool"),
        ("mobilenet_v3_small", " ".join(f"features.{i}" for i in range(13)) + " pool"),
        ("mobilenet_v2", " ".join(f"features.{i}" for i in range(19)) + " pool"),
        ("mnasnet0_5", " ".join(f"layers.{i}" for i in range(17)) + " pool"),
        pytest.param("convnext_tiny", " ".join(f"features.{i}" for i in range(8)) + " pool", marks=pytest.mark.slow),
        pytest.param("swin_t", " ".join(f"features.{i}" for i in range(8)) + " norm pool", marks=pytest.mark.slow),
        pytest.param("alexnet", " ".join(f"features.{i}" for i in range(13)) + " pool", marks=pytest.mark.slow),
        pytest.param("vgg11", " ".join(f"features.{i}" for i in range(21)) + " pool", marks=pytest.mark.slow),
        pytest.param("densenet121", None, marks=pytest.mark.slow),
        pytest.param("maxvit_t", "stem blocks.0 blocks.1 blocks.2 blocks.3 pool", marks=pytest.mark.slow),
        ("mtl.model.resnet9:resnet9", "stem stage1 stage2 stage3 pool"),
    ],
)
def test_stages_in_turn_are_what_the_model_computes(name: str, stages: str | None) -> None:
    size_px = {"maxvit_t": 224, "alexnet": 96, "vgg11": 96}.get(name, 64)
    backbone = build_backbone(name, {}, size_px)
    assert stages is None or [stage.name for stage in backbone.stages] == stages.split()
    images = torch.randn(2, 3, size_px, size_px)
    for training in (False, True):
        whole, chain = copy.deepcopy(backbone.net).train(training), copy.deepcopy(backbone.whole()).train(training)
        torch.manual_seed(1)
        expected = whole(images)
        torch.manual_seed(1)
        assert chain(images).equal(expected)
    channels, side = backbone.last_map()
    assert backbone.until("pool")(images).shape == (2, channels, side, side)
    names = [name for name, _ in backbone.net.named_parameters()]
    assert {name for name, _ in backbone.whole().named_parameters()} == set(names)


def test_arguments_reach_the_model() -> None:
    assert build_backbone("mobilenet_v3_small", {"reduced_tail": True}, 32).features == 512
    assert build_backbone("mtl.model.resnet9:resnet9", {"width": 16}, 32).features == 128


def test_the_trial_run_leaves_no_trace() -> None:
    torch.manual_seed(1)
    backbone = build_backbone("mtl.model.resnet9:resnet9", {"width": 8}, 16).net
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
