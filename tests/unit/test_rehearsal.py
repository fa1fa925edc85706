"""One step, and what it says of memory."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from mtl.config import Augment, Config, Model, Order, Resources, Task
from mtl.data.manifest import Manifest
from mtl.errors import ConfigError
from mtl.rehearsal import rehearse
from mtl.store import open_store
from tests.helpers.datasets import tiny

HIDDEN = 512


def plain(inputs: int = 3 * 16 * 16) -> nn.Module:
    """A backbone whose activations can be counted on paper."""
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, HIDDEN), nn.ReLU())


def config(**changes: object) -> Config:
    values: dict[str, object] = {
        "recipe": "x",
        "name": "x",
        "data": "none",
        "global_batch": 64,
        "tasks": {"object": Task(kind="multiclass", label="object", classes=3)},
        "augment": Augment(size_px=16, crop="none", eval_resize_px=16),
        "model": Model(backbone=f"{__name__}:plain", batch_norm="local"),
        "order": Order(lanes=8, block_row_groups=None),
        "resources": Resources(workers=2),
    }
    return Config.model_validate(values | changes)


def test_memory_is_weights_gradients_moments_and_activations() -> None:
    found = rehearse(config(), None)
    weights = (3 * 16 * 16 + 1) * HIDDEN + (HIDDEN + 1) * 3
    each = 3 * 16 * 16 + HIDDEN + 2 * 3  # input, what ReLU and the head keep, and a few of the loss
    expected = 4 * (4 * weights + 32 * each)
    assert found.parameters == weights
    assert (found.samples, found.micro_batch) == (8, 32)
    assert found.memory_bytes == pytest.approx(expected, rel=0.05)
    assert found.losses["object"] == pytest.approx(math.log(3), abs=0.7)


def test_smaller_micro_batches_take_less() -> None:
    whole = rehearse(config(), None).memory_bytes
    assert rehearse(config(max_micro_batch=8), None).memory_bytes < whole


def test_on_the_first_images_of_the_data_set(tmp_path: Path) -> None:
    tiny(tmp_path)
    manifest = Manifest.load(open_store(str(tmp_path)))
    tasks = {name: Task(kind=kind, label=name) for name, kind in (("object", "multiclass"), ("amount", "regression"))}
    found = rehearse(config(data=str(tmp_path), tasks=tasks), manifest)
    assert found.losses.keys() == {"object", "amount"}
    assert all(math.isfinite(loss) for loss in found.losses.values())


class Exploding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :4] * self.weight * (float("inf") if self.training else 1)


def test_a_gradient_that_is_not_finite() -> None:
    with pytest.raises(ConfigError, match="not finite"):
        rehearse(config(model=Model(backbone=f"{__name__}:Exploding", batch_norm="local")), None)


def test_without_data_classes_must_be_known() -> None:
    with pytest.raises(ConfigError, match="classes is not known"):
        rehearse(config(tasks={"object": Task(kind="multiclass", label="object")}), None)
