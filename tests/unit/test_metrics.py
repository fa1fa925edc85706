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


SCORED = st.lists(st.tuples(st.integers(-8, 8), st.integers(0, 1)), min_size=1, max_size=40)


@given(SCORED)
def test_rankings_with_ties(pairs: list[tuple[int, int]]) -> None:
    score, positive = torch.tensor(pairs, dtype=torch.float64).T
    chance, label = (score / 4).sigmoid(), positive.long()
    if 0 < label.sum() < len(label):
        assert metrics.auroc(score, label > 0) == pytest.approx(float(oracle.binary_auroc(chance, label)), abs=1e-6)
    else:
        assert math.isnan(metrics.auroc(score, label > 0))
    if label.any():
        expected = float(oracle.binary_average_precision(chance, label))
        assert metrics.average_precision(score, label > 0) == pytest.approx(expected, abs=1e-6)
    else:
        assert math.isnan(metrics.average_precision(score, label > 0))


@given(PAIRS, st.integers(0, 99))
def test_calibration_and_top_k(pairs: list[tuple[int, int]], seed: int) -> None:
    label, _ = columns(pairs)
    logits = torch.randn(len(label), C, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    chances = logits.softmax(1)
    sums = metrics.calibration_sums(chances.amax(1), chances.argmax(1) == label)
    expected = oracle.multiclass_calibration_error(chances, label, C, n_bins=15)
    assert metrics.calibration_error(sums) == pytest.approx(float(expected), abs=1e-6)
    for k in (1, 2, C):
        found = metrics.top(logits, label, k)
        expected = oracle.multiclass_accuracy(chances, label, C, average="micro", top_k=k)
        assert int(found[f"top{k}"]) / int(found[f"top{k}_n"]) == pytest.approx(float(expected), abs=1e-6)


def test_equal_outputs_are_not_all_among_the_first() -> None:
    found = metrics.top(torch.zeros(6, 6), torch.arange(6), 5)
    assert int(found["top5"]) == 5


@given(PAIRS)
def test_ordered_classes(pairs: list[tuple[int, int]]) -> None:
    label, predicted = columns(pairs)
    got = metrics.ordinal(metrics.confusion(label, predicted, C))
    apart = (label - predicted).abs().double()
    assert got["mae"] == pytest.approx(float(apart.mean()))
    assert got["within_1"] == pytest.approx(float((apart <= 1).double().mean()))
    if len({*pairs}) > 1 and len({*label.tolist(), *predicted.tolist()}) > 1:
        expected = oracle.multiclass_cohen_kappa(predicted, label, C, weights="quadratic")
        assert got["kappa"] == pytest.approx(float(expected), abs=1e-5)


@given(
    st.lists(st.lists(st.tuples(st.integers(-1, 1), st.booleans()), min_size=3, max_size=3), min_size=1, max_size=20)
)
def test_multilabel(rows: list[list[tuple[int, bool]]]) -> None:
    label = torch.tensor([[y for y, _ in row] for row in rows])
    predicted = torch.tensor([[p for _, p in row] for row in rows])
    sums = metrics.entry_sums(predicted, label)
    got, each = metrics.multilabel(sums), metrics.multilabel_each(sums, "abc")
    kept: list[dict[str, float]] = []
    for at, name in enumerate("abc"):
        known = label[:, at] >= 0
        y, p = label[known, at], predicted[known, at].long()
        if not (y.any() or p.any()):
            continue
        kept.append(
            {
                "precision": float(oracle.binary_precision(p, y)),
                "recall": float(oracle.binary_recall(p, y)),
                "f1": float(oracle.binary_f1_score(p, y)),
            }
        )
        for metric, value in kept[-1].items():
            assert each[f"{metric}[{name}]"] == pytest.approx(value, abs=1e-6)
    for metric in ("precision", "recall", "f1"):
        assert got[metric] == pytest.approx(np.mean([k[metric] for k in kept]) if kept else 0, abs=1e-6)
    known = label >= 0
    if known.any():
        y, p = label[known], predicted[known].long()
        assert got["accuracy"] == pytest.approx(float(oracle.binary_accuracy(p, y)), abs=1e-6)
        assert got["f1_micro"] == pytest.approx(float(oracle.binary_f1_score(p, y)), abs=1e-6)


@given(PAIRS)
def test_classes_one_by_one(pairs: list[tuple[int, int]]) -> None:
    label, predicted = columns(pairs)
    got = metrics.multiclass_each(metrics.confusion(label, predicted, C), "abcd")
    each: dict[str, Any] = {"preds": predicted, "target": label, "num_classes": C, "average": "none"}
    for name, value in (("precision", oracle.multiclass_precision), ("f1", oracle.multiclass_f1_score)):
        assert [got[f"{name}[{c}]"] for c in "abcd"] == pytest.approx(value(**each).tolist(), abs=1e-6)


def test_vectors_with_unknown_components() -> None:
    draws = np.random.default_rng(0)
    predicted, label = (torch.from_numpy(draws.normal(size=(20, 3))) for _ in range(2))
    label[draws.random((20, 3)) < 0.3] = torch.nan
    got = metrics.regression(metrics.regression_sums(predicted, label))
    known = [(predicted[k, i], label[k, i]) for i, k in enumerate((~label.isnan()).T)]
    assert got["mae"] == pytest.approx(np.mean([float((p - y).abs().mean()) for p, y in known]))
    assert got["r2"] == pytest.approx(np.mean([float(oracle_of_numbers.r2_score(p, y)) for p, y in known]), abs=1e-6)


def test_severity_is_of_mistakes_alone() -> None:
    heights = torch.tensor([[0, 1, 2], [1, 0, 2], [2, 2, 0]])
    counts = metrics.confusion(torch.tensor([0, 0, 0, 2]), torch.tensor([0, 1, 2, 2]), 3)
    assert metrics.severity(counts, heights) == 1.5
    assert metrics.severity(torch.eye(3), heights) == 0
