"""Images that grow with training: which size when, and with which pixels."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mtl.config import Augment
from mtl.data.growth import Growth, shrunk
from mtl.errors import ConfigError


def augment(size_px: int, first_px: int | None) -> Augment:
    return Augment(size_px=size_px, grow_from_px=first_px, eval_resize_px=size_px)


@given(st.integers(9, 300), st.data(), st.integers(1, 500))
def test_sizes_rise_in_few_steps_from_the_first_to_the_full_one(size_px: int, data: st.DataObject, steps: int) -> None:
    first = data.draw(st.integers(8, size_px - 1))
    growth = Growth(augment(size_px, first), steps)
    sides = [growth.side_px(step) for step in range(steps + 3)]
    assert sides == sorted(sides)
    assert sides[0] == first
    full = [step for step in range(steps) if sides[step] == size_px]
    by = 32 if size_px >= 128 else 4
    assert all(step in full for step in range(steps) if step >= 0.8 * steps)
    assert {(side - first) % by for side in sides if side != size_px} <= {0}
    assert growth.area(range(steps)) == pytest.approx(sum((side / size_px) ** 2 for side in sides[:steps]) / steps)


def test_sizes_of_the_recipes() -> None:
    growth = Growth(augment(32, 16), 1000)
    assert [growth.side_px(step) for step in (0, 199, 200, 400, 600, 799, 800, 999)] == [16, 16, 20, 24, 28, 28, 32, 32]
    growth = Growth(augment(224, 128), 900)
    assert [growth.side_px(step) for step in (0, 239, 240, 480, 719, 720)] == [128, 128, 160, 192, 192, 224]


def test_without_the_switch_nothing_changes() -> None:
    growth = Growth(augment(16, None), 10)
    assert {growth.side_px(step) for step in range(12)} == {16}
    assert growth.area(range(10)) == 1
    images = torch.rand(2, 3, 16, 16)
    assert shrunk(images, 16) is images


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_pixel_is_a_mean_over_its_area(memory_format: torch.memory_format) -> None:
    images = torch.rand(3, 3, 32, 32, dtype=torch.float64).contiguous(memory_format=memory_format)
    half, quarter = shrunk(images, 16), shrunk(images, 8)
    assert half.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(half[:, :, 3, 3], images[:, :, 6:8, 6:8].mean((2, 3)))
    # The triangle of antialiased bilinear interpolation at a quarter: 1, 3, 5, 7, 7, 5, 3, 1 along each axis.
    weights = torch.tensor([1.0, 3.0, 5.0, 7.0, 7.0, 5.0, 3.0, 1.0], dtype=torch.float64) / 32
    middle: Tensor = torch.einsum("ncij,i,j->nc", images[:, :, 10:18, 10:18], weights, weights)
    torch.testing.assert_close(quarter[:, :, 3, 3], middle)


def test_a_size_that_can_not_grow_is_refused() -> None:
    with pytest.raises(ConfigError, match="leaves nothing to grow"):
        augment(16, 16)
