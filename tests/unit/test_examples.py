"""What examples/ holds: valid configurations, a backbone that builds, pairs of images as they are described."""

from collections import Counter
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from examples.overlay_pairs import GREY, overlay, pairs
from mtl.config import load
from mtl.model import build_backbone

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
CONFIGS = sorted(EXAMPLES.glob("*.yaml"))


def test_each_says_what_it_is() -> None:
    assert CONFIGS
    for path in CONFIGS:
        assert path.read_text().startswith("# ")
    for path in EXAMPLES.glob("*.py"):
        assert import_module(f"examples.{path.stem}").__doc__


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_configuration_is_valid_and_its_backbone_takes_its_images(path: Path) -> None:
    config = load(path)
    assert config.recipe == path.stem
    side = config.augment.size_px
    backbone = build_backbone(config.model.backbone, config.model.backbone_args, side)
    assert backbone.whole()(torch.zeros(2, 3, side, side)).shape == (2, backbone.features)


@given(offset=st.integers(0, 3), share=st.floats(0, 1))
def test_images_meet_in_the_middle_and_leave_grey_corners(offset: int, share: float) -> None:
    draws = np.random.default_rng(offset)
    first, second = (draws.integers(0, 256, (4, 4, 3), np.uint8) for _ in range(2))
    made = overlay(first, second, offset, share)
    assert made.shape == (4 + offset, 4 + offset, 3)
    for row in range(4 + offset):
        for column in range(4 + offset):
            a = first[row, column] if max(row, column) < 4 else None
            b = second[row - offset, column - offset] if min(row, column) >= offset else None
            if a is not None and b is not None:
                expected = share * a.astype(float) + (1 - share) * b
            else:
                expected = a if a is not None else b if b is not None else np.full(3, GREY)
            assert np.abs(made[row, column] - expected).max() <= 0.501


@given(n=st.integers(0, 40), size=st.integers(2, 12), seed=st.integers(0, 99))
def test_pairs_are_of_two_images_and_use_all_alike(n: int, size: int, seed: int) -> None:
    made = list(pairs(n, size, seed))
    assert len(made) == n
    assert all(a != b and max(a, b) < size for a, b in made)
    for side in zip(*made, strict=True):
        often = Counter(side)
        assert max(often.values()) - min(often[number] for number in range(size)) <= 1
