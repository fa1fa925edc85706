"""Colour augmentation and standardisation, against a plain reference in float64."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtl.config import Augment
from mtl.data.colour import Standardise
from mtl.data.manifest import Statistics

STATISTICS = Statistics(mean=(0.48, 0.45, 0.4), std=(0.27, 0.2, 0.3), images=10)
ALL = Augment(brightness=0.4, contrast=0.4, saturation=0.4)
CPU = torch.device("cpu")
FACTORS = st.floats(0, 2, width=32)


def images(n: int = 3, seed: int = 0, height: int = 5, width: int = 7) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), np.uint8))


def reference(image: npt.NDArray[np.uint8], colour: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """One image [H, W, 3] with factors [3]: float64 [3, H, W]."""
    luma = np.array([0.299, 0.587, 0.114])
    brightness, contrast, saturation = colour.astype(np.float64)
    x = np.clip(image / 255 * brightness, 0, 1)
    middle = (x @ luma).mean()
    x = np.clip(middle + contrast * (x - middle), 0, 1)
    gray = (x @ luma)[..., None]
    x = np.clip(gray + saturation * (x - gray), 0, 1)
    return ((x - STATISTICS.mean) / STATISTICS.std).transpose(2, 0, 1)


@settings(max_examples=50)
@given(st.lists(st.tuples(FACTORS, FACTORS, FACTORS), min_size=1, max_size=4), st.integers(0, 99))
def test_equals_the_reference(factors: list[tuple[float, float, float]], seed: int) -> None:
    colour = torch.tensor(factors, dtype=torch.float32)
    x = images(len(factors), seed)
    made = Standardise(STATISTICS, ALL, CPU, torch.float64)(x, colour)
    expected = [reference(image, factor) for image, factor in zip(x.numpy(), colour.numpy(), strict=True)]
    np.testing.assert_allclose(made.numpy(), np.stack(expected), rtol=0, atol=1e-12)
    single = Standardise(STATISTICS, ALL, CPU, torch.float32)(x, colour)
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), np.stack(expected), rtol=0, atol=1e-4)


@pytest.mark.parametrize("augment", [ALL, None])
def test_neutral_factors_are_the_identity(augment: Augment | None) -> None:
    x = images()
    made = Standardise(STATISTICS, augment, CPU, torch.float64)(x, torch.ones(3, 3))
    mean, std = np.array(STATISTICS.mean), np.array(STATISTICS.std)
    expected = ((x.numpy() / 255 - mean) / std).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(made.numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_what_is_switched_off_is_not_applied(name: str) -> None:
    """The factors of the others are there, but theirs is the only one that counts."""
    colour = torch.tensor([[0.6, 0.7, 1.3]] * 3)
    off = {other: 0.0 for other in ("brightness", "contrast", "saturation") if other != name}
    made = Standardise(STATISTICS, ALL.model_copy(update=off), CPU, torch.float64)(images(), colour)
    alone = torch.ones(3, 3)
    column = ("brightness", "contrast", "saturation").index(name)
    alone[:, column] = colour[:, column]
    expected = Standardise(STATISTICS, ALL, CPU, torch.float64)(images(), alone)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-12)
    assert not torch.equal(made, Standardise(STATISTICS, None, CPU, torch.float64)(images(), colour))


def test_a_sample_does_not_depend_on_the_rest_of_its_batch() -> None:
    standardise = Standardise(STATISTICS, ALL, CPU, torch.float32)
    x, colour = images(8, height=16, width=16), 0.6 + 0.8 * torch.rand(8, 3, generator=torch.Generator().manual_seed(0))
    together = standardise(x, colour)
    for i in range(8):
        assert torch.equal(standardise(x[i : i + 1], colour[i : i + 1])[0], together[i])
    assert torch.equal(standardise(x.flip(0), colour.flip(0)), together.flip(0))


def test_memory_is_channels_last_and_the_input_is_untouched() -> None:
    x, colour = images(), torch.full((3, 3), 0.5)
    before = x.clone()
    for augment in (ALL, None):
        made = Standardise(STATISTICS, augment, CPU, torch.float32)(x, colour)
        assert made.shape == (3, 3, 5, 7)
        assert made.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x, before)


def test_blank_images_stay_finite() -> None:
    x = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    for factor in (0.0, 2.0):
        made = Standardise(STATISTICS, ALL, CPU, torch.float32)(x, torch.full((1, 3), factor))
        np.testing.assert_allclose(made[0, :, 0, 0], -np.array(STATISTICS.mean) / STATISTICS.std, rtol=1e-5)


def test_of_constant_channels() -> None:
    """A data set whose images all have one value in a channel has no standard deviation there."""
    flat = Statistics(mean=(0.5, 0.5, 0.5), std=(0.0, 0.1, 0.1), images=3)
    made = Standardise(flat, None, CPU, torch.float32)(images(), torch.ones(3, 3))
    assert torch.isfinite(made).all()
