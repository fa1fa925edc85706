"""Predictions that are tallied exactly however they are split; losses are in test_losses."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl.config import Task
from mtl.errors import ConfigError
from mtl.task_config import EACH, FURTHER, METRICS
from mtl.tasks import TaskSpec, build
from tests.helpers.specs import hidden, labelled
from tests.helpers.specs import spec as of_task

KINDS = (*METRICS, "vector")
VECTOR: dict[str, Any] = {"classes": ("x", "y"), "low": (-2.0, 0.0), "high": (6.0, 6.0)}


def asked(kind: str) -> tuple[Task, dict[str, Any]]:
    """A task with all its metrics."""
    listed = (EACH,) if kind in ("multiclass", "multilabel", "vector") else ()
    name: Any = "regression" if kind == "vector" else kind
    return Task(kind=name, label="column", metrics=(*FURTHER[name], *listed)), VECTOR if kind == "vector" else {}


def spec(kind: Any) -> TaskSpec:
    return of_task(Task(kind=kind, label="column"))


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


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(KINDS), st.lists(st.booleans(), min_size=1, max_size=24), st.data())
def test_tallies_of_any_split_add_up(kind: str, present: list[bool], data: st.DataObject) -> None:
    task, known = asked(kind)
    n = len(present)
    made, outputs, label = labelled(task, n, **known)
    label = hidden(made, label, torch.tensor(present))
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=4)))
    parts = [made.tally(outputs[a:b], label[a:b]) for a, b in zip([0, *cuts], [*cuts, n], strict=True)]
    summed = {name: torch.stack([part[name] for part in parts]).sum(0) for name in parts[0]}
    whole = made.tally(outputs, label)
    for name, value in whole.items():
        assert value.dtype in (torch.float64, torch.int64)
        torch.testing.assert_close(summed[name], value)
    assert made.summary(summed) == pytest.approx(made.summary(whole))
    assert made.primary[0] in made.summary(whole)
    assert all(math.isfinite(value) for value in made.summary(whole).values())
    # Rows without a label might as well not be there.
    keep = torch.tensor(present)
    assert made.summary(made.tally(outputs[keep], label[keep])) == pytest.approx(made.summary(whole))


@pytest.mark.parametrize("kind", ["multiclass", "soft", "multilabel", "ordinal"])
def test_a_task_that_needs_classes(kind: Any) -> None:
    with pytest.raises(ConfigError, match="has no classes"):
        build("object", Task(kind=kind, label="size"), classes=None, low=0, high=0)


def test_components_are_listed_by_name() -> None:
    made, output, label = labelled(Task(kind="regression", label="at", metrics=(EACH,)), 5, **VECTOR)
    label[:, 1] = torch.nan
    found = made.summary(made.tally(output, label))
    assert found["mae"] == found["mae[x]"] > 0
    assert found["mae[y]"] == 0
