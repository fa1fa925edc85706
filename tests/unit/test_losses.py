"""Every loss against its formula or torch's own, gradients included; missing labels cost nothing."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from mtl.config import Loss, Task
from mtl.errors import ConfigError
from mtl.losses.ordinal import above
from mtl.tree import ancestor_heights
from tests.helpers.specs import hidden, labelled, spec

PATHS = (("warm", "bright"), ("cold",), ("cold",), ())
HEIGHTS = torch.from_numpy(ancestor_heights(PATHS))
WEIGHTS = (0.5, 2.0, 1.0, 3.0)
W = torch.tensor(WEIGHTS, dtype=torch.float64)
HALF, MIDDLE = 4.0, 2.0

Reference = Callable[[Tensor, Tensor], Tensor]


def p_true(output: Tensor, label: Tensor) -> Tensor:
    return output.softmax(1).gather(1, label[:, None])[:, 0]


def focal(output: Tensor, label: Tensor) -> Tensor:
    p = p_true(output, label)
    return -((1 - p) ** 1.5) * p.log()


def binary_focal(output: Tensor, label: Tensor) -> Tensor:
    p = torch.where(label > 0, output.sigmoid(), 1 - output.sigmoid())
    return -torch.where(label > 0, 0.25, 0.75) * (1 - p) ** 2 * p.log()


def asymmetric(output: Tensor, label: Tensor) -> Tensor:
    p = output.sigmoid()
    q = (p - 0.05).clamp(min=0)
    return torch.where(label > 0, -(1 - p) * p.log(), -(q**4) * (1 - q).log())


def coral(output: Tensor, label: Tensor) -> Tensor:
    logits = above(output)
    truth = torch.stack([(label > k).double() for k in range(3)], 1)
    return F.binary_cross_entropy(logits.sigmoid(), truth, reduction="none").sum(1)


def cumulative(output: Tensor, label: Tensor) -> Tensor:
    over = above(output).sigmoid()
    ends = torch.cat([torch.ones_like(over[:, :1]), over, torch.zeros_like(over[:, :1])], 1)
    return -(ends[:, :-1] - ends[:, 1:]).gather(1, label[:, None])[:, 0].log()


def hierarchical(output: Tensor, label: Tensor) -> Tensor:
    """Equation 3, node by node, over the tree of PATHS: {red}, {cold: green, blue}, {grey} below the root."""
    p = output.softmax(1)
    cold = p[:, 1] + p[:, 2]
    leaf, upper = torch.ones(()).double(), torch.tensor(-0.4).double().exp()
    inside = -(leaf * (p_true(output, label) / cold).log() + upper * cold.log())
    outside = -leaf * p_true(output, label).log()
    return torch.where((label == 1) | (label == 2), inside, outside)


def tree_labels(output: Tensor, label: Tensor) -> Tensor:
    weight = (-3.0 * HEIGHTS / HEIGHTS.max()).double().exp()
    target = (weight / weight.sum(1, keepdim=True))[label]
    return -(target * output.log_softmax(1)).sum(1)


def scaled(each: Reference) -> Reference:
    return lambda output, label: each(output[:, 0], (label - MIDDLE) / HALF)


def task(kind: Any, name: str | None = None, **options: Any) -> Task:
    on_tree = {"tree": "tree.csv"} if name in ("hierarchical", "tree_labels") else {}
    return Task(kind=kind, label="label", loss=Loss(name=name, **options), **on_tree)


CASES: dict[str, tuple[Task, Reference]] = {
    "cross_entropy": (task("multiclass"), lambda o, y: F.cross_entropy(o, y, reduction="none")),
    "smoothed": (
        Task(kind="multiclass", label="x", label_smoothing=0.2),
        lambda o, y: F.cross_entropy(o, y, reduction="none", label_smoothing=0.2),
    ),
    "focal": (task("multiclass", "focal", gamma=1.5), focal),
    "focal_0": (task("multiclass", "focal", gamma=0), lambda o, y: F.cross_entropy(o, y, reduction="none")),
    "hierarchical": (task("multiclass", "hierarchical", alpha=0.4), hierarchical),
    "hierarchical_0": (
        task("multiclass", "hierarchical", alpha=0),
        lambda o, y: F.cross_entropy(o, y, reduction="none"),
    ),
    "tree_labels": (task("multiclass", "tree_labels", beta=3), tree_labels),
    "kl": (task("soft"), lambda o, y: (y * (y.log() - o.log_softmax(1))).sum(1)),
    "bce": (
        task("binary"),
        lambda o, y: F.binary_cross_entropy_with_logits(o[:, 0], y.double(), reduction="none"),
    ),
    "binary_focal": (task("binary", "focal", alpha=0.25), lambda o, y: binary_focal(o[:, 0], y)),
    "multilabel": (
        task("multilabel", "bce", pos_weight=WEIGHTS),
        lambda o, y: F.binary_cross_entropy_with_logits(o, y.double(), reduction="none", pos_weight=W),
    ),
    "multilabel_focal": (task("multilabel", "focal", alpha=0.25), binary_focal),
    "asymmetric": (task("multilabel", "asymmetric"), asymmetric),
    "cumulative": (task("ordinal"), cumulative),
    "coral": (task("ordinal", "coral"), coral),
    "pointer": (
        task("circular"),
        lambda o, y: 0.5 * (o - torch.stack([y.sin(), y.cos()], 1)).square().sum(1),
    ),
    "l2": (task("regression"), scaled(lambda o, y: F.mse_loss(o, y, reduction="none"))),
    "l1": (task("regression", "l1"), scaled(lambda o, y: F.l1_loss(o, y, reduction="none"))),
    "huber": (
        task("regression", "huber", delta=0.3),
        scaled(lambda o, y: F.huber_loss(o, y, reduction="none", delta=0.3)),
    ),
    "own": (task("binary", "tests.helpers.own_losses:own", args={"power": 3}), lambda o, y: (o[:, 0] - y).abs() ** 3),
}


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([*CASES]), st.lists(st.booleans(), max_size=12), st.integers(0, 99))
def test_a_loss_is_the_sum_over_present_labels(case: str, present: list[bool], seed: int) -> None:
    asked, reference = CASES[case]
    made, output, label = labelled(asked, len(present), seed, paths=PATHS if asked.tree else None)
    keep = torch.tensor(present, dtype=torch.bool)
    shown = hidden(made, label, keep)
    assert made.valid(shown).tolist() == present
    loss = made.loss(output, shown)
    assert loss.shape == ()
    expected = reference(output[keep], label[keep])
    expected = expected.mean(1).sum() if expected.ndim == 2 else expected.sum()
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, output)
    assert gradient.isfinite().all()
    assert not gradient[~keep].any()
    if keep.any():
        (wanted,) = torch.autograd.grad(expected, output)
        torch.testing.assert_close(gradient, wanted)
    assert made.weight_of(shown).tolist() == keep.double().tolist()


@pytest.mark.parametrize("case", CASES)
def test_a_task_without_any_label_has_a_zero_that_is_connected(case: str) -> None:
    asked = CASES[case][0]
    made, output, label = labelled(asked, 5, paths=PATHS if asked.tree else None)
    nothing = hidden(made, label, torch.zeros(5, dtype=torch.bool))
    loss = made.loss(output, nothing)
    assert loss.item() == 0 == made.weight_of(nothing).sum()
    loss.backward()
    assert output.grad is not None
    assert not output.grad.any()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [0.0, 40.0, 1e4])
def test_logits_of_any_size_have_a_finite_gradient(case: str, size: float) -> None:
    asked = CASES[case][0]
    made, output, label = labelled(asked, 16, paths=PATHS if asked.tree else None)
    far = (size * output.detach().sign()).float().requires_grad_()
    loss = made.loss(far, label)
    (gradient,) = torch.autograd.grad(loss, far)
    assert loss.isfinite()
    assert gradient.isfinite().all()


@given(st.integers(0, 99))
def test_weights_of_classes_divide_as_in_torch(seed: int) -> None:
    for name, smoothing in (("cross_entropy", 0.1), ("cross_entropy", 0.0)):
        asked = Task(
            kind="multiclass", label="x", label_smoothing=smoothing, loss=Loss(name=name, class_weights=WEIGHTS)
        )
        made, output, label = labelled(asked, 9, seed)
        keep = torch.arange(9) != 4
        shown = hidden(made, label, keep)
        mean = made.loss(output, shown) / made.weight_of(shown).sum()
        torch.testing.assert_close(mean, F.cross_entropy(output[keep], label[keep], W, label_smoothing=smoothing))


def test_balanced_weights_come_from_the_counts() -> None:
    made = spec(task("multiclass", None, balanced=True), counts=(10, 30, 0, 40))
    assert made.weight_of(torch.tensor([0, 1, 2, 3, -1])).tolist() == pytest.approx([2, 2 / 3, 1, 0.5, 0])
    made, output, _ = labelled(task("multilabel", "bce", balanced=True), 1, counts=(1, 5, 4, 0), known=(10,) * 4)
    yes = torch.ones(1, 4, dtype=torch.int64)
    plain = F.binary_cross_entropy_with_logits(output, yes.double(), reduction="none")
    torch.testing.assert_close(made.loss(output, yes), (plain * torch.tensor([9.0, 1.0, 1.5, 1.0])).mean())


@settings(deadline=None)
@given(st.integers(0, 99), st.sampled_from(["multilabel", "regression"]))
def test_unknown_entries_leave_the_mean_over_the_known_ones(seed: int, kind: Any) -> None:
    vector = {"classes": ("x", "y", "z"), "low": (-2.0,) * 3, "high": (6.0,) * 3} if kind == "regression" else {}
    made, output, label = labelled(Task(kind=kind, label="x"), 7, seed, **vector)
    keep = torch.rand(label.shape, generator=torch.Generator().manual_seed(seed)) < 0.4
    shown = hidden(made, label, keep)
    mean = made.loss(output, shown) / made.weight_of(shown).sum().clamp(min=1e-9)
    if kind == "multilabel":
        reference = F.binary_cross_entropy_with_logits(output[keep], label[keep].double())
    else:
        reference = F.mse_loss(output[keep], (label[keep] - MIDDLE) / HALF)
    if keep.any():
        torch.testing.assert_close(mean, reference)
    assert made.valid(shown).tolist() == keep.any(1).tolist()


@given(st.integers(0, 99))
def test_chances_of_ordered_classes_add_up_whatever_the_head_says(seed: int) -> None:
    made, output, _ = labelled(task("ordinal"), 5, seed)
    chances = torch.stack([(-made.each(output, torch.full((5,), k))).exp() for k in range(4)], 1)
    torch.testing.assert_close(chances.sum(1), torch.ones(5, dtype=torch.float64))
    assert (above(output).diff(dim=1) < 0).all()


def test_a_loss_of_the_users_must_give_one_loss_a_sample() -> None:
    made, output, label = labelled(task("binary", "tests.helpers.own_losses:unfinished"), 4)
    with pytest.raises(ConfigError, match="one loss for each sample"):
        made.loss(output, label)
    for name in ("tests.helpers.own_losses:nowhere", "no.such.module:loss"):
        with pytest.raises(ConfigError, match="can not be imported"):
            spec(task("binary", name))


@pytest.mark.parametrize(
    ("asked", "known", "said"),
    [
        (task("multiclass", None, class_weights=(1.0, 2.0)), {}, "2 weights"),
        (task("multiclass", None, class_weights=(1.0, 2.0, -1.0, 1.0)), {}, "smallest -1"),
        (task("multiclass", None, balanced=True), {}, "no data set"),
        (task("binary", None, pos_weight=(1.0, 2.0)), {}, "2 weights"),
    ],
)
def test_weights_that_do_not_fit(asked: Task, known: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        spec(asked, **known)


def test_heights_of_common_ancestors() -> None:
    paths = [("animal", "mammal", "dog"), ("animal", "mammal", "dog"), ("animal", "bird"), ("thing",), ()]
    assert ancestor_heights(paths).tolist() == [
        [0, 1, 2, 3, 3],
        [1, 0, 2, 3, 3],
        [2, 2, 0, 3, 3],
        [3, 3, 3, 0, 3],
        [3, 3, 3, 3, 0],
    ]


@given(st.lists(st.lists(st.sampled_from("ab"), max_size=4).map(tuple), min_size=1, max_size=12))
def test_distances_in_a_tree_are_an_ultrametric(paths: list[tuple[str, ...]]) -> None:
    heights = ancestor_heights(paths)
    assert (heights == heights.T).all()
    assert ((heights == 0) == np.eye(len(paths), dtype=bool)).all()
    assert (heights[:, :, None] <= np.maximum(heights[:, None, :], heights.T[None, :, :])).all()
