"""What is decayed, and how the learning rate goes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mtl.config import Optimizer
from mtl.errors import ConfigError
from mtl.model import PATTERNS, Backbone, HardSharing, HeadSpec, MultiTaskModel, build_backbone
from mtl.optim import build_optimizer, learning_rate, learning_scales, set_learning_rate

BATCH = 64
SHAPES = st.one_of(
    st.builds(
        Optimizer,
        lr=st.floats(1e-5, 10),
        warmup_epochs=st.floats(0, 5, allow_subnormal=False),
        schedule=st.sampled_from(["cosine", "linear", "constant"]),
    ),
    st.builds(
        Optimizer,
        lr=st.floats(1e-5, 10),
        warmup_epochs=st.floats(0, 5, allow_subnormal=False),
        schedule=st.just("step"),
        step_epochs=st.sets(st.floats(6, 50), min_size=1, max_size=3).map(lambda at: tuple(sorted(at))),
        step_factor=st.floats(0.01, 0.9),
    ),
)


def net() -> MultiTaskModel:
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2), nn.LayerNorm(2))
    return HardSharing(Backbone("test", backbone, 2), HeadSpec({"kind": 1, "object": 3}))


def staged(pattern: str = "hard", **arguments: object) -> MultiTaskModel:
    backbone = build_backbone("mtl.model.resnet9:resnet9", {"width": 8, "norm": "group"}, 16)
    return PATTERNS[pattern](backbone, HeadSpec({"kind": 1, "object": 3}), **arguments)


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
    next(iter(model.parameters())).requires_grad_(False)
    held = [p for group in build_optimizer(model, Optimizer()).param_groups for p in group["params"]]
    assert [id(p) for p in held] != []
    assert {id(p) for p in held} == {id(p) for p in model.parameters() if p.requires_grad}


def test_without_multiples_there_are_two_groups() -> None:
    optimizer = build_optimizer(net(), Optimizer(name="sgd"))
    assert [(group["scale"], len(group["params"])) for group in optimizer.param_groups] == [(1.0, 4), (1.0, 8)]


def test_heads_learn_at_their_own_multiple() -> None:
    model = staged()
    scales = learning_scales(model, Optimizer(head_lr={"object": 10.0}))
    assert {scales[p] for p in model.task_parameters("object")} == {10.0}
    assert {scale for p, scale in scales.items() if p not in set(model.task_parameters("object"))} == {1.0}


def test_earlier_stages_learn_slower() -> None:
    model = staged()
    scales = learning_scales(model, Optimizer(backbone_lr=0.5, stage_decay=0.1))
    by_stage = {name.split(".")[1]: scales[p] for name, p in model.named_parameters() if name.startswith("backbone.")}
    assert by_stage == pytest.approx({"stem": 0.0005, "stage1": 0.005, "stage2": 0.05, "stage3": 0.5})
    assert all(scales[p] == 1.0 for task in model.tasks for p in model.task_parameters(task))


def test_stages_that_are_not_known_can_not_learn_at_different_rates() -> None:
    with pytest.raises(ConfigError, match="no stages") as caught:
        learning_scales(net(), Optimizer(stage_decay=0.5))
    assert caught.value.got == "optimizer.stage_decay = 0.5"
    learning_scales(net(), Optimizer(backbone_lr=0.5))


def test_copies_of_a_stage_learn_at_the_product() -> None:
    model = staged("split", stage="stage3")
    scales = learning_scales(model, Optimizer(backbone_lr=0.5, stage_decay=0.1, head_lr={"object": 3.0}))
    expected = {"trunk.stage2": 0.05, "towers.object": 1.5, "towers.kind": 0.5, "heads.object": 3.0, "heads.kind": 1.0}
    for prefix, scale in expected.items():
        found = {scales[p] for name, p in model.named_parameters() if name.startswith(prefix)}
        assert list(found) == pytest.approx([scale]), prefix


def test_experts_are_no_part_of_the_backbone() -> None:
    model = staged("mmoe", experts=2, expert_width=4)
    scales = learning_scales(model, Optimizer(backbone_lr=0.5))
    assert {name.split(".")[0] for name, p in model.named_parameters() if scales[p] == 1.0} == {
        "experts",
        "gates",
        "heads",
    }


def test_every_group_follows_the_schedule_at_its_multiple() -> None:
    config = Optimizer(lr=0.4, backbone_lr=0.5, schedule="linear")
    optimizer = build_optimizer(staged(), config)
    assert {group["lr"] for group in optimizer.param_groups} == {0.4, 0.2}
    assert set_learning_rate(optimizer, config, 5, 10, BATCH) == pytest.approx(0.2)
    assert [group["lr"] / group["scale"] for group in optimizer.param_groups] == pytest.approx([0.2] * 4)


@pytest.mark.parametrize(("scaling", "factor"), [("linear", 4.0), ("sqrt", 2.0)])
def test_the_learning_rate_follows_the_batch(scaling: str, factor: float) -> None:
    config = Optimizer(lr=0.1, lr_scaling=scaling, lr_batch=256)  # type: ignore[arg-type]
    assert config.peak_lr(1024) == pytest.approx(0.1 * factor)
    assert learning_rate(config, 0, 10, 1024) == pytest.approx(0.1 * factor)
    told = config.scaled(1024)
    assert told is not None
    assert told.startswith(f"learning rate {0.1 * factor:g} = 0.1 x ")
    assert "1,024 / 256" in told
    assert Optimizer(lr=0.1).scaled(1024) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr_scaling": "linear"}, "lr_scaling and optimizer.lr_batch need each other"),
        ({"lr_batch": 256}, "lr_scaling and optimizer.lr_batch need each other"),
        ({"schedule": "step"}, "need each other"),
        ({"schedule": "step", "step_epochs": (3.0,)}, "need each other"),
        ({"step_epochs": (3.0,), "step_factor": 0.1}, "need each other"),
        ({"step_factor": 0.1}, "need each other"),
        ({"schedule": "step", "step_factor": 0.1, "step_epochs": (5.0, 3.0)}, "must rise"),
        ({"schedule": "step", "step_factor": 0.1, "step_epochs": (0.0, 3.0)}, "must rise"),
        ({"head_lr": {"kind": 0.0}}, "head_lr must be above zero"),
    ],
)
def test_options_that_do_not_belong_together(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Optimizer.model_validate(values)
    assert caught.value.expected


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_a_gradient_of_other_strides_is_the_same_gradient(name: str) -> None:
    results: list[list[torch.Tensor]] = []
    for strange in (False, True):
        torch.manual_seed(0)
        model = staged().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = build_optimizer(model, Optimizer(name=name, lr=0.1))  # type: ignore[arg-type]
        for parameter in model.parameters():
            gradient = torch.randn(parameter.shape)
            parameter.grad = gradient if strange else torch.empty_like(parameter).copy_(gradient)
        optimizer.step()
        results.append([parameter.detach().clone() for parameter in model.parameters()])
    assert all(a.equal(b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_the_fused_update_is_the_plain_one(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    models, config = [staged().to(dtype), staged().to(dtype)], Optimizer(name=name, lr=0.01, weight_decay=0.1)  # type: ignore[arg-type]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [build_optimizer(model, config) for model in models]
    for group in optimizers[1].param_groups:
        group.update(fused=False, foreach=False)
    images = torch.randn(4, 3, 16, 16, dtype=dtype)
    for _ in range(3):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            torch.cat(list(model(images).values()), 1).square().mean().backward()
            optimizer.step()
    limit = 1e-10 if dtype == torch.float64 else 1e-4
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=limit, atol=limit)


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
    first, second = (learning_rate(config, at, epochs, BATCH) for at in (early, late))
    assert 0 <= first <= config.lr
    if late <= config.warmup_epochs:
        assert first <= second * (1 + 1e-12)
    elif early >= config.warmup_epochs:
        assert first >= second * (1 - 1e-12)


@given(SHAPES, st.floats(1, 100))
def test_ends_of_the_schedule(config: Optimizer, length: float) -> None:
    epochs = config.warmup_epochs + length
    if config.warmup_epochs:
        assert learning_rate(config, 0, epochs, BATCH) == 0
        assert learning_rate(config, config.warmup_epochs / 2, epochs, BATCH) == pytest.approx(config.lr / 2)
    assert learning_rate(config, config.warmup_epochs, epochs, BATCH) == pytest.approx(config.lr)
    end = config.lr if config.schedule == "constant" else 0
    if config.schedule == "step":
        assert config.step_factor is not None
        epochs = max(epochs, config.step_epochs[-1])
        assert learning_rate(config, epochs, epochs, BATCH) == pytest.approx(
            config.lr * config.step_factor ** len(config.step_epochs)
        )
        return
    assert learning_rate(config, epochs, epochs, BATCH) == pytest.approx(end, abs=1e-12 * config.lr)
    assert learning_rate(config, epochs + 1, epochs, BATCH) == pytest.approx(end, abs=1e-12 * config.lr)


@pytest.mark.parametrize(("schedule", "share"), [("cosine", 0.5 * (1 + math.cos(math.pi / 4))), ("linear", 0.75)])
def test_a_quarter_of_the_way_down(schedule: str, share: float) -> None:
    config = Optimizer(lr=2.0, warmup_epochs=2, schedule=schedule)  # type: ignore[arg-type]
    assert learning_rate(config, 4, 10, BATCH) == pytest.approx(2 * share)


def test_a_run_that_ends_within_its_warm_up() -> None:
    config = Optimizer(lr=1.0, warmup_epochs=5)
    assert learning_rate(config, 1, 2, BATCH) == pytest.approx(0.2)
    assert learning_rate(config, 5, 5, BATCH) == pytest.approx(1.0)


def test_steps_down() -> None:
    config = Optimizer(lr=1.0, schedule="step", step_epochs=(3.0, 6.5), step_factor=0.1)
    found = [learning_rate(config, at, 10, BATCH) for at in (0, 2.9, 3, 6.4, 6.5, 10)]
    assert found == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
