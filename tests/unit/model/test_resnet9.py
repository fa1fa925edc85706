"""The small residual network."""

import pytest
import torch
from torch import nn

from mtl.model.resnet9 import resnet9


@pytest.mark.parametrize(("stem_stride", "size_px"), [(1, 16), (1, 32), (2, 64)])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_features(norm: str, stem_stride: int, size_px: int) -> None:
    net = resnet9(8, norm, stem_stride)  # type: ignore[arg-type]
    images = torch.randn(2, 3, size_px, size_px)
    features = net(images)
    assert features.shape == (2, 64)
    features.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_group_norm_keeps_samples_apart() -> None:
    net = resnet9(8, "group").double()
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    alone = torch.cat([net(image[None]) for image in images])
    torch.testing.assert_close(net(images), alone, rtol=1e-12, atol=1e-12)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())


def test_memory_format_does_not_matter() -> None:
    net = resnet9(8, "group").double().eval()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    same = net.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last))  # type: ignore[call-overload]
    torch.testing.assert_close(same, net(images), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("width", [0, 4, 12, -8])
def test_widths_that_do_not_work(width: int) -> None:
    with pytest.raises(ValueError, match="multiple of 8"):
        resnet9(width)
