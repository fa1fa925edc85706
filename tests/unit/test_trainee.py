"""Running statistics that count only after a good step, and a first backward that leaves no trace."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mtl.model.batchnorm import apply_policy
from mtl.runtime import LocalRuntime
from mtl.trainee import RunningStatistics, settle
from tests.helpers.backbones import Backwards, small
from tests.helpers.batches import CPU, trainee
from tests.helpers.engine import digest
from tests.helpers.ranks import Group, values

EXACT: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def test_a_bad_step_leaves_no_statistics() -> None:
    model = small("batch")
    before = state(model)
    statistics = RunningStatistics(model)
    model(torch.full((4, 3, 16, 16), torch.nan))
    assert any(buffer.isnan().any() for buffer in model.buffers())
    statistics.undo()
    for name, buffer in model.named_buffers():
        assert buffer.equal(before[name]), name


@pytest.mark.parametrize("cuts", [[8], [4, 4], [4, 4, 4, 4], [12, 4]])
def test_micro_batches_leave_what_the_whole_batch_would(cuts: list[int]) -> None:
    images = torch.randn(sum(cuts), 3, 16, 16, dtype=torch.float64)
    torch.manual_seed(0)
    whole = apply_policy(small("batch").double(), "groups", 4)
    torch.manual_seed(0)
    parts = apply_policy(small("batch").double(), "groups", 4)
    whole(images)
    statistics = RunningStatistics(parts)
    for part in images.split(cuts):
        parts(part)
        statistics.gather(len(part) / len(images))
    statistics.keep()
    for name, buffer in parts.named_buffers():
        torch.testing.assert_close(buffer, whole.get_buffer(name), **EXACT)


def test_frozen_batch_norm_stays_frozen_in_training() -> None:
    made = trainee(partial(small, "batch"), frozen_batch_norm=True)
    assert made.model.training
    assert not any(module.training for module in made.model.modules() if isinstance(module, nn.BatchNorm2d))


def test_a_model_without_a_group_needs_no_settling() -> None:
    made = trainee()
    before = digest(made.model)
    settle(made, 16, CPU)
    assert digest(made.model) == before


def settled() -> bool:
    with LocalRuntime(gpu=False, threads=1, listen=lambda _: None) as runtime:
        made = trainee(partial(small, "batch") if runtime.world_size == 2 else Backwards, dtype=torch.float32)
        made.parallel = runtime.parallel(made.model)
        before, statistics = digest(made.model), state(made.model)
        settle(made, 16, CPU)
        assert digest(made.model) == before
        assert all(buffer.equal(statistics[name]) for name, buffer in made.model.named_buffers())
        assert all(p.grad is None for p in made.model.parameters())
        return made.model.training


@pytest.mark.parametrize("world_size", [2, 3])
def test_settling_leaves_no_trace(world_size: int, tmp_path: Path) -> None:
    assert all(values(Group(tmp_path / "ranks", world_size, settled).wait()))
