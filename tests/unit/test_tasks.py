"""Losses that a missing label does not touch, and predictions that are tallied exactly however they are split."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from mtl.config import Task, TaskKind
from mtl.errors import ConfigError
from mtl.tasks import TaskSpec, build

CLASSES = ("red", "green", "blue")
KINDS: tuple[TaskKind, ...] = ("multiclass", "binary", "circular", "regression")


def spec(kind: TaskKind, label_smoothing: float = 0.0) -> TaskSpec:
    classes = CLASSES if kind == "multiclass" else None
    return build(
        kind, Task(kind=kind, label="column", label_smoothing=label_smoothing), classes=classes, low=-2.0, high=6.0
    )


def labelled(kind: TaskKind, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random outputs, which require a gradient, and labels."""
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(n, spec(kind).outputs, generator=generator, dtype=torch.float64).requires_grad_()
    if spec(kind).integer:
        return outputs, torch.randint(3 if kind == "multiclass" else 2, (n,), generator=generator)
    return outputs, torch.rand(n, generator=generator) * 6


def hidden(task: TaskSpec, label: Tensor, keep: Tensor) -> Tensor:
    return torch.where(keep, label, -1 if task.integer else torch.nan)


EACH: dict[TaskKind, Callable[[Tensor, Tensor], Tensor]] = {
    "multiclass": lambda output, label: F.cross_entropy(output, label, reduction="sum"),
    "binary": lambda output, label: F.binary_cross_entropy_with_logits(output[:, 0], label.double(), reduction="sum"),
    "circular": lambda output, label: (
        0.5 * F.mse_loss(output, torch.stack([label.double().sin(), label.double().cos()], 1), reduction="sum")
    ),
    "regression": lambda output, label: F.mse_loss(output[:, 0], (label.double() - 2) / 4, reduction="sum"),
}


@given(st.sampled_from(KINDS), st.lists(st.booleans(), max_size=20))
def test_a_loss_is_the_sum_over_present_labels(kind: TaskKind, present: list[bool]) -> None:
    task, keep = spec(kind), torch.tensor(present, dtype=torch.bool)
    outputs, label = labelled(kind, len(present))
    loss = task.loss(outputs, hidden(task, label, keep))
    assert loss.shape == ()
    assert task.valid(hidden(task, label, keep)).tolist() == present
    torch.testing.assert_close(loss, EACH[kind](outputs[keep], label[keep]))
    (gradient,) = torch.autograd.grad(loss, outputs)
    assert gradient.isfinite().all()
    assert not gradient[~keep].any()
    if keep.any():
        (expected,) = torch.autograd.grad(EACH[kind](outputs[keep], label[keep]), outputs)
        torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_without_any_label_has_a_zero_that_is_connected(kind: TaskKind) -> None:
    task = spec(kind)
    outputs, label = labelled(kind, 5)
    loss = task.loss(outputs, hidden(task, label, torch.zeros(5, dtype=torch.bool)))
    assert loss.item() == 0
    loss.backward()
    assert outputs.grad is not None
    assert not outputs.grad.any()


def test_label_smoothing() -> None:
    outputs, label = labelled("multiclass", 9)
    expected = F.cross_entropy(outputs, label, reduction="sum", label_smoothing=0.2)
    torch.testing.assert_close(spec("multiclass", label_smoothing=0.2).loss(outputs, label), expected)


@given(st.floats(0, 2 * math.pi), st.floats(-math.pi, math.pi), st.floats(0.1, 10))
def test_an_angle_is_measured_on_the_circle(true: float, off: float, length: float) -> None:
    task = spec("circular")
    pointer = length * torch.tensor([[math.sin(true + off), math.cos(true + off)]], dtype=torch.float64)
    metrics = task.summary(task.tally(pointer, torch.tensor([true], dtype=torch.float64)))
    assert metrics["error_degrees"] == pytest.approx(abs(math.degrees(off)), abs=1e-6)
    assert metrics["within_15_degrees"] == (abs(off) <= math.pi / 12) or abs(abs(off) - math.pi / 12) < 1e-9


def test_the_loss_of_an_angle_has_no_jump_where_the_circle_closes() -> None:
    task = spec("circular")
    pointer = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    before, after = (task.loss(pointer, torch.tensor([angle])).item() for angle in (2 * math.pi - 1e-3, 1e-3))
    assert before == pytest.approx(after, abs=1e-6)
    assert before < 1e-5


def test_a_number_is_scaled_to_the_range_seen_in_training() -> None:
    task = spec("regression")
    outputs, label = torch.tensor([[-1.0], [0.0], [1.0]]), torch.tensor([-2.0, 2.0, 6.0])
    assert task.loss(outputs, label).item() == 0
    assert task.loss(outputs, label + 4).item() == 3
    # Metrics are in the label's own units.
    metrics = task.summary(task.tally(outputs, label + torch.tensor([0.0, 3.0, 0.0])))
    assert metrics["mae"] == 1
    assert metrics["rmse"] == pytest.approx(math.sqrt(3))


def test_a_number_that_does_not_vary_keeps_its_unit() -> None:
    task = build("n", Task(kind="regression", label="column"), classes=None, low=5.0, high=5.0)
    assert task.loss(torch.tensor([[2.0]]), torch.tensor([5.0])).item() == 4
    assert task.loss(torch.tensor([[0.0]]), torch.tensor([7.0])).item() == 4


@settings(max_examples=50)
@given(st.sampled_from(KINDS), st.lists(st.booleans(), min_size=1, max_size=24), st.data())
def test_tallies_of_any_split_add_up(kind: TaskKind, present: list[bool], data: st.DataObject) -> None:
    task, n = spec(kind), len(present)
    outputs, label = labelled(kind, n)
    label = hidden(task, label, torch.tensor(present))
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=4)))
    parts = [task.tally(outputs[a:b], label[a:b]) for a, b in zip([0, *cuts], [*cuts, n], strict=True)]
    summed = {name: torch.stack([part[name] for part in parts]).sum(0) for name in parts[0]}
    whole = task.tally(outputs, label)
    for name, value in whole.items():
        assert value.dtype in (torch.float64, torch.int64)
        torch.testing.assert_close(summed[name], value)
    assert task.summary(summed) == pytest.approx(task.summary(whole))
    assert task.primary[0] in task.summary(whole)
    assert all(math.isfinite(value) for value in task.summary(whole).values())


def test_a_multiclass_task_needs_classes() -> None:
    with pytest.raises(ConfigError, match="has no classes"):
        build("object", Task(kind="multiclass", label="size"), classes=None, low=0, high=0)
