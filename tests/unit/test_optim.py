"""What is decayed, and how the learning rate goes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mtl.config import Optimizer
from mtl.optim import build_optimizer, learning_rate

SHAPES = st.builds(
    Optimizer,
    lr=st.floats(1e-5, 10),
    warmup_epochs=st.floats(0, 5, allow_subnormal=False),
    schedule=st.sampled_from(["cosine", "linear", "constant"]),
)


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2), nn.LayerNorm(2))


@pytest.mark.parametrize(
    ("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_only_matrices_and_kernels_are_decayed(name: str, kind: type[torch.optim.Optimizer]) -> None:
    model = net()
    optimizer = build_optimizer(model, Optimizer(name=name, weight_decay=0.1, lr=0.5))  # type: ignore[arg-type]
    assert type(optimizer) is kind
    decay = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {p: 0.1 if p.ndim >= 2 else 0.0 for p in model.parameters()} == decay
    assert all(group["lr"] == 0.5 for group in optimizer.param_groups)


def test_frozen_parameters_are_left_out() -> None:
    model = net()
    model[0].requires_grad_(False)  # type: ignore[index]
    held = [p for group in build_optimizer(model, Optimizer()).param_groups for p in group["params"]]
    assert [id(p) for p in held] != []
    assert {id(p) for p in held} == {id(p) for p in model.parameters() if p.requires_grad}


def test_a_model_without_biases_and_norms_has_one_group() -> None:
    optimizer = build_optimizer(nn.Linear(2, 2, bias=False), Optimizer(name="sgd"))
    assert [len(group["params"]) for group in optimizer.param_groups] == [1]


def test_momentum() -> None:
    sgd = build_optimizer(net(), Optimizer(name="sgd", momentum=0.8)).param_groups[0]
    assert (sgd["momentum"], sgd["nesterov"]) == (0.8, True)
    plain = build_optimizer(net(), Optimizer(name="sgd", momentum=0.0)).param_groups[0]
    assert (plain["momentum"], plain["nesterov"]) == (0.0, False)
    assert build_optimizer(net(), Optimizer(name="adam", momentum=0.8)).param_groups[0]["betas"] == (0.8, 0.999)


@given(SHAPES, st.floats(1, 100), st.floats(0, 1), st.floats(0, 1))
def test_the_learning_rate_rises_and_then_never_does(config: Optimizer, length: float, a: float, b: float) -> None:
    epochs = config.warmup_epochs + length
    early, late = sorted((a * epochs, b * epochs))
    first, second = (learning_rate(config, at, epochs) for at in (early, late))
    assert 0 <= first <= config.lr
    if late <= config.warmup_epochs:
        assert first <= second * (1 + 1e-12)
    elif early >= config.warmup_epochs:
        assert first >= second * (1 - 1e-12)


@given(SHAPES, st.floats(1, 100))
def test_ends_of_the_schedule(config: Optimizer, length: float) -> None:
    epochs = config.warmup_epochs + length
    if config.warmup_epochs:
        assert learning_rate(config, 0, epochs) == 0
        assert learning_rate(config, config.warmup_epochs / 2, epochs) == pytest.approx(config.lr / 2)
    assert learning_rate(config, config.warmup_epochs, epochs) == pytest.approx(config.lr)
    end = config.lr if config.schedule == "constant" else 0
    assert learning_rate(config, epochs, epochs) == pytest.approx(end, abs=1e-12 * config.lr)
    assert learning_rate(config, epochs + 1, epochs) == pytest.approx(end, abs=1e-12 * config.lr)


@pytest.mark.parametrize(("schedule", "share"), [("cosine", 0.5 * (1 + math.cos(math.pi / 4))), ("linear", 0.75)])
def test_a_quarter_of_the_way_down(schedule: str, share: float) -> None:
    config = Optimizer(lr=2.0, warmup_epochs=2, schedule=schedule)  # type: ignore[arg-type]
    assert learning_rate(config, 4, 10) == pytest.approx(2 * share)


def test_a_run_that_ends_within_its_warm_up() -> None:
    config = Optimizer(lr=1.0, warmup_epochs=5)
    assert learning_rate(config, 1, 2) == pytest.approx(0.2)
    assert learning_rate(config, 5, 5) == pytest.approx(1.0)
