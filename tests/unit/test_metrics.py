"""Metrics from sums equal those of torchmetrics from all samples at once."""

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torchmetrics.functional import classification as oracle
from torchmetrics.functional import regression as oracle_of_numbers

from mtl import metrics

C = 4
PAIRS = st.lists(st.tuples(st.integers(0, C - 1), st.integers(0, C - 1)), min_size=1, max_size=40)
# Above the noise of float32, in which labels are stored.
NUMBERS = st.floats(-1000, 1000, width=32).map(lambda x: round(x, 2))


def columns(pairs: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    label, predicted = torch.tensor(pairs).T
    return label, predicted


@given(PAIRS)
def test_multiclass(pairs: list[tuple[int, int]]) -> None:
    label, predicted = columns(pairs)
    got = metrics.multiclass(metrics.confusion(label, predicted, C))
    macro: dict[str, Any] = {"preds": predicted, "target": label, "num_classes": C, "average": "macro"}
    expected = {
        "accuracy": oracle.multiclass_accuracy(predicted, label, C, average="micro"),
        "precision": oracle.multiclass_precision(**macro),
        "recall": oracle.multiclass_recall(**macro),
        "f1": oracle.multiclass_f1_score(**macro),
    }
    assert got == pytest.approx({name: float(value) for name, value in expected.items()}, abs=1e-6)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=40))
def test_binary(pairs: list[tuple[int, int]]) -> None:
    label, predicted = columns(pairs)
    got = metrics.binary(metrics.confusion(label, predicted, 2))
    expected = {
        "accuracy": oracle.binary_accuracy(predicted, label),
        "precision": oracle.binary_precision(predicted, label),
        "recall": oracle.binary_recall(predicted, label),
        "f1": oracle.binary_f1_score(predicted, label),
    }
    assert got == pytest.approx({name: float(value) for name, value in expected.items()}, abs=1e-6)


@given(PAIRS)
def test_confusion_has_labels_in_rows(pairs: list[tuple[int, int]]) -> None:
    counts = metrics.confusion(*columns(pairs), C)
    assert counts.dtype == torch.int64
    assert counts.tolist() == [[pairs.count((label, predicted)) for predicted in range(C)] for label in range(C)]


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=2, max_size=30))
def test_regression(pairs: list[tuple[float, float]]) -> None:
    predicted, label = torch.tensor(pairs, dtype=torch.float64).T
    got = metrics.regression(metrics.regression_sums(predicted, label))
    assert got["mae"] == pytest.approx(float(oracle_of_numbers.mean_absolute_error(predicted, label)))
    assert got["rmse"] == pytest.approx(math.sqrt(float(oracle_of_numbers.mean_squared_error(predicted, label))))
    if np.ptp(label.numpy()) == 0:
        assert got["r2"] == 0
    elif label.var() > 1e-6 * label.square().max():  # else the oracle itself is rounding
        assert got["r2"] == pytest.approx(float(oracle_of_numbers.r2_score(predicted, label)), rel=1e-4, abs=1e-4)


@given(st.floats(-1e6, 1e6), st.integers(1, 50))
@example(0.1, 3)
@example(1e6 + 0.1, 50)
def test_labels_that_do_not_vary_have_no_r2(value: float, n: int) -> None:
    label = torch.full((n,), value, dtype=torch.float64)
    assert metrics.regression(metrics.regression_sums(label + 1, label))["r2"] == 0


@given(st.lists(st.tuples(st.floats(-20, 20), st.floats(0, 2 * math.pi)), min_size=1, max_size=30))
def test_angles(pairs: list[tuple[float, float]]) -> None:
    predicted, label = torch.tensor(pairs, dtype=torch.float64).T
    got = metrics.angular(metrics.angular_sums(predicted, label))
    apart = np.abs(np.angle(np.exp(1j * (predicted - label).numpy())))
    assert got["error_degrees"] == pytest.approx(np.degrees(apart.mean()), abs=1e-6)
    near = np.abs(apart - math.pi / 12) < 1e-9
    assert abs(got["within_15_degrees"] - (apart <= math.pi / 12).mean()) <= near.mean()


def test_no_sample_at_all_gives_zeros() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        none, floats = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64)
        found = [
            metrics.multiclass(metrics.confusion(none, none, C)),
            metrics.binary(metrics.confusion(none, none, 2)),
            metrics.angular(metrics.angular_sums(floats, floats)),
            metrics.regression(metrics.regression_sums(floats, floats)),
        ]
    assert all(value == 0 for group in found for value in group.values())
