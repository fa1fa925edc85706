"""Where the statistics come from, and what the weights are applied to: each backend against gradients taken by hand."""

import json
import math
from collections.abc import Callable
from functools import partial
from typing import Any, final

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._functorch import config as functorch_config

from mtl.balancing import METHODS
from mtl.balancing.base import Needs, Stateless, TaskStats
from mtl.balancing.build import build_balancer
from mtl.balancing.signals import Ranks, Weigher, build_signal
from mtl.balancing.statistic import Joint, Linear, Samples, Statistic, cosines, fidelity
from mtl.config import Optimizer
from mtl.data.batch import Batch
from mtl.errors import ConfigError
from mtl.loop import train_step
from mtl.model import MultiTaskModel
from mtl.trainee import Trainee
from tests.helpers.backbones import small
from tests.helpers.batches import CPU, batch, counts, gradients, hide, specs, trainee
from tests.helpers.engine import TASKS

EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11}
PLAIN = Optimizer(name="sgd", lr=0.05, momentum=0.0)
BACKENDS: list[dict[str, Any]] = [
    {"backend": "scalar"},
    {"backend": "boundary"},
    {"backend": "boundary", "statistic": "samples"},
    {"backend": "exact"},
    {"backend": "exact", "refresh_steps": 3},
]
WEIGHTS = [0.5, 2.0, 0.0, 1.0]


@final
class Fixed(Stateless):
    """A balancer that gives WEIGHTS, and looks at everything."""

    needs = Needs.GRAM | Needs.HISTORY

    def __init__(self, tasks: int, seed: int) -> None:
        self.seen: list[TaskStats] = []

    def weights(self, stats: TaskStats) -> Tensor:
        self.seen.append(stats)
        return torch.tensor(WEIGHTS, dtype=torch.float64)


FIXED = "tests.unit.balancing.test_balancing_signals:Fixed"


def step(made: Trainee, one: Batch) -> Tensor | None:
    return train_step(made, one, counts(one), CPU)


def parameters(made: Trainee) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in made.model.state_dict().items()}


def assert_close(got: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: float) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, msg=name, **(tolerance or EXACT))


def by_hand(made: Trainee, one: Batch) -> tuple[list[dict[str, Tensor]], Tensor, list[Tensor]]:
    """Of each task: gradients by parameter, of its weight times its mean loss; features; cotangents there."""
    images = made.standardise(torch.from_numpy(one.images), torch.from_numpy(one.colour))
    features = made.model.get_submodule("backbone")(images)
    found: list[dict[str, Tensor]] = []
    cotangents: list[Tensor] = []
    for spec in made.specs:
        labels = torch.from_numpy(one.labels[spec.name])
        output = made.model.get_submodule(f"heads.{spec.name}")(features)
        loss = spec.weight * spec.loss(output, labels) / max(int(spec.valid(labels).sum()), 1)
        named = dict(made.model.named_parameters())
        each = torch.autograd.grad(loss, [features, *named.values()], retain_graph=True, materialize_grads=True)
        cotangents.append(each[0])
        found.append(dict(zip(named, each[1:], strict=True)))
    return found, features.detach(), cotangents


def last_stats(made: Trainee) -> TaskStats:
    balancer = made.weigher.balancer
    seen: list[TaskStats] = balancer.seen  # type: ignore[attr-defined]
    return seen[-1]


@pytest.mark.parametrize("how", BACKENDS, ids=str)
def test_static_weights_train_the_same_on_every_backend(how: dict[str, Any]) -> None:
    plain, other = trainee(optimizer=PLAIN), trainee(optimizer=PLAIN, **how)
    for number in range(4):
        one = batch(8, step=number, seed=number)
        hide(one, "kind", [0, 1])
        torch.testing.assert_close(step(other, one), step(plain, one), **EXACT)
    assert_close(parameters(other), parameters(plain))


@pytest.mark.parametrize("how", BACKENDS, ids=str)
def test_with_one_task_every_method_is_plain_training(how: dict[str, Any]) -> None:
    first, second = batch(8), batch(8, step=1, seed=1)
    hide(second, "angle", [0, 3])
    plain, (spec,) = trainee(optimizer=PLAIN, names=["angle"]), specs(["angle"])
    for one in (first, second):  # by hand
        plain.optimizer.zero_grad()
        images = plain.standardise(torch.from_numpy(one.images), torch.from_numpy(one.colour))
        labels = torch.from_numpy(one.labels["angle"])
        (spec.loss(plain.model(images)["angle"], labels) / int(spec.valid(labels).sum())).backward()
        plain.optimizer.step()
    for method in METHODS:
        if how["backend"] == "scalar" and Needs.GRAM in build_balancer(method, 1, 0).needs:
            continue
        made = trainee(optimizer=PLAIN, names=["angle"], method=method, **how)
        for one in (first, second):
            assert train_step(made, one, counts(one)[[2]], CPU) is not None, method
        assert_close(parameters(made), parameters(plain))


@pytest.mark.parametrize("how", BACKENDS[1:4], ids=str)
def test_shared_parameters_get_the_weighted_sum_and_heads_their_own(how: dict[str, Any]) -> None:
    made, one = trainee(method=FIXED, **how), batch(8)
    hide(one, "amount", [2, 3, 4])
    each, _, _ = by_hand(made, one)
    step(made, one)
    for name, got in gradients(made).items():
        if name.startswith("backbone."):
            expected = sum((w * own[name] for w, own in zip(WEIGHTS, each, strict=True)), torch.zeros_like(got))
        else:
            expected = sum((own[name] for own in each), torch.zeros_like(got))
        torch.testing.assert_close(got, expected, msg=name, **EXACT)


def test_exact_gram_is_that_of_the_shared_parameters() -> None:
    made, one = trainee(method=FIXED, backend="exact"), batch(8)
    hide(one, "object", [0, 5])
    each, _, _ = by_hand(made, one)
    rows = torch.stack([torch.cat([g.flatten() for n, g in own.items() if n.startswith("backbone")]) for own in each])
    step(made, one)
    stats = last_stats(made)
    torch.testing.assert_close(stats.gram, rows @ rows.T, **EXACT)
    assert stats.losses is not None
    assert stats.kinds == tuple(task.kind for task in TASKS.values())


@pytest.mark.parametrize("statistic", ["samples", "linear", "joint"])
def test_boundary_gram_is_the_statistic_of_the_cotangents(statistic: str) -> None:
    made, one = trainee(method=FIXED, backend="boundary", statistic=statistic), batch(8)
    hide(one, "object", [0, 5])
    _, features, cotangents = by_hand(made, one)
    centred = features - features.mean(0)
    kernel = {
        "samples": torch.eye(8, dtype=torch.float64),
        "linear": centred @ centred.T,
        "joint": torch.eye(8, dtype=torch.float64) + features @ features.T / features.square().sum(1).mean(),
    }[statistic]
    each = torch.stack(list(cotangents))
    step(made, one)
    expected = torch.einsum("kbd,bc,lcd->kl", each, kernel, each)
    torch.testing.assert_close(last_stats(made).gram, expected, **EXACT)


def test_scalar_weights_reach_the_heads() -> None:
    made, one = trainee(method="si"), batch(8)
    each, _, _ = by_hand(made, one)
    losses = step(made, one)
    assert losses is not None
    weighted = losses / counts(one) * made.weigher.preference
    assert made.weigher.known.tolist() == pytest.approx((1 / weighted).tolist())
    for name, got in gradients(made).items():
        expected = sum((own[name] / x for own, x in zip(each, weighted, strict=True)), torch.zeros_like(got))
        torch.testing.assert_close(got, expected, msg=name, **EXACT)


@pytest.mark.parametrize("micro_batch", [3, 8])
def test_exact_accumulates(micro_batch: int) -> None:
    whole = trainee(method="mgda", backend="exact", optimizer=PLAIN)
    parts = trainee(method="mgda", backend="exact", optimizer=PLAIN, micro_batch=micro_batch, accumulates=True)
    for number in range(3):
        one = batch(12, step=number, seed=number)
        step(whole, one)
        step(parts, one)
    assert_close(parameters(parts), parameters(whole), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("method", "how"),
    [
        ("nash-mtl", {"statistic": "linear"}),
        ("nash-mtl", {"statistic": "samples"}),
        ("mgda", {}),
        ("gls", {}),
        ("famo", {}),
    ],
)
def test_with_a_lag_anything_accumulates(method: str, how: dict[str, Any]) -> None:
    whole = trainee(method=method, lag=True, optimizer=PLAIN, **how)
    parts = trainee(method=method, lag=True, optimizer=PLAIN, micro_batch=5, accumulates=True, **how)
    for number in range(4):
        one = batch(12, step=number, seed=number)
        step(whole, one)
        step(parts, one)
    assert_close(parameters(parts), parameters(whole), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("method", "backend"), [("gls", "scalar"), ("mgda", "boundary")])
def test_a_lag_uses_the_weights_of_the_step_before(method: str, backend: str) -> None:
    now = trainee(method=method, backend=backend, optimizer=Optimizer(name="sgd", lr=1e-300, momentum=0.0))
    late = trainee(method=method, backend=backend, lag=True, optimizer=Optimizer(name="sgd", lr=1e-300, momentum=0.0))
    used: list[Tensor] = []
    expected = [torch.ones(4, dtype=torch.float64)]
    for number in range(3):
        one = batch(8, step=number, seed=number)
        used.append(late.weigher.known.clone())
        step(late, one)
        step(now, one)
        expected.append(now.weigher.known.clone())
    for got, wanted in zip(used, expected, strict=False):
        torch.testing.assert_close(got, wanted, **EXACT)


def test_amortised_weights_hold_until_the_next_gram() -> None:
    made = trainee(method="mgda", backend="exact", refresh_steps=3)
    seen: list[list[float]] = []
    for number in range(7):
        step(made, batch(8, step=number, seed=number))
        seen.append(made.weigher.known.tolist())
    assert seen[0] == seen[1] == seen[2] != seen[3] == seen[4] == seen[5] != seen[6]


@pytest.mark.parametrize("how", BACKENDS[1:], ids=str)
def test_a_report_says_where_gradients_were_seen(how: dict[str, Any]) -> None:
    made = trainee(method="mgda", **how)
    for number in range(3):
        step(made, batch(8, step=number))
    assert made.weigher.telemetry.report(list(TASKS))["seen"] == how["backend"]


@pytest.mark.parametrize("how", BACKENDS[1:4], ids=str)
def test_an_absent_task_keeps_its_weight_and_changes_nothing(how: dict[str, Any]) -> None:
    made = trainee(method="mgda", **how)
    step(made, batch(8))
    before = made.weigher.known.clone()
    one = batch(8, step=1, seed=1)
    hide(one, "angle", slice(None))
    step(made, one)
    assert made.weigher.known[2] == before[2]
    others = made.weigher.known[[0, 1, 3]]
    assert others.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("how", BACKENDS[1:4], ids=str)
def test_a_task_of_weight_zero_is_only_watched(how: dict[str, Any]) -> None:
    made = trainee(method="mgda", **how)
    made.weigher.preference[2] = 0
    losses = step(made, batch(8))
    assert losses is not None
    assert losses[2] > 0
    assert made.weigher.known[[0, 1, 3]].sum().item() == pytest.approx(1)
    assert all(not g.any() for name, g in gradients(made).items() if name.startswith("heads.angle."))


@pytest.mark.parametrize("how", BACKENDS[1:4], ids=str)
@pytest.mark.parametrize("method", ["gradvac", "gradnorm"])
def test_a_step_that_is_not_finite_teaches_nothing(method: str, how: dict[str, Any]) -> None:
    made = trainee(partial(small, "batch"), method=method, **how)
    step(made, batch(8))
    before, state = parameters(made), json.dumps(made.weigher.state_dict())
    bad = batch(8, seed=1)
    bad.colour[3] = np.nan
    assert step(made, bad) is None
    assert json.dumps(made.weigher.state_dict()) == state
    assert_close(parameters(made), before, rtol=0, atol=0)
    assert step(made, batch(8, seed=2)) is not None
    assert json.dumps(made.weigher.state_dict()) != state


@pytest.mark.parametrize("backend", ["boundary", "exact"])
def test_a_gram_that_overflows_skips_the_step_though_gradients_are_finite(backend: str) -> None:
    made = trainee(method="mgda", backend=backend, statistic="samples", dtype=torch.float32)
    head = made.model.get_submodule("heads.amount.out")
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.bias.fill_(1e12)
        head.weight.mul_(1e9)  # a cotangent of 1e21, whose square leaves float32
    before = parameters(made)
    assert step(made, batch(4)) is None
    assert all(gradient.isfinite().all() for gradient in gradients(made).values())
    assert_close(parameters(made), before, rtol=0, atol=0)


@pytest.mark.parametrize("how", BACKENDS, ids=str)
def test_a_scale_for_half_precision_scales_gradients_alone(how: dict[str, Any]) -> None:
    method = "static" if how["backend"] == "scalar" else FIXED
    plain, scaled = trainee(method=method, **how), trainee(method=method, scale=lambda: 512.0, **how)
    one = batch(8)
    step(plain, one)
    step(scaled, one)
    assert_close({n: g / 512 for n, g in gradients(scaled).items()}, gradients(plain))
    if method == FIXED:
        torch.testing.assert_close(last_stats(scaled).gram, last_stats(plain).gram, **EXACT)


def test_famo_looks_again_at_the_same_batch_and_leaves_no_other_trace() -> None:
    def dropping() -> nn.Module:
        return nn.Sequential(small("batch"), nn.Dropout(0.3))

    made = trainee(dropping, method="famo", optimizer=PLAIN)
    plain = trainee(dropping, method="si", optimizer=PLAIN)
    seen: list[Tensor] = []
    balancer = made.weigher.balancer
    update = balancer.update
    balancer.update = lambda stats, post: (seen.append(post), update(stats, post))  # type: ignore[assignment]
    one = batch(8)
    torch.manual_seed(3)
    step(made, one)
    after = torch.rand(1)
    # The second look, by hand: same dropout, same labels, the new parameters.
    torch.manual_seed(3)
    images = made.standardise(torch.from_numpy(one.images), torch.from_numpy(one.colour))
    with torch.no_grad():
        outputs = made.model(images)
    sums = torch.stack([s.loss(outputs[s.name], torch.from_numpy(one.labels[s.name])) for s in made.specs])
    torch.testing.assert_close(seen[0], sums.double() / counts(one) * made.weigher.preference, **EXACT)
    torch.manual_seed(3)
    step(plain, one)
    assert torch.rand(1).equal(after)
    names = [name for name, _ in plain.model.named_buffers()]
    # by_hand above moved the statistics once more, so compare a fresh pair.
    fresh = trainee(dropping, method="famo", optimizer=PLAIN)
    torch.manual_seed(3)
    step(fresh, one)
    for name in names:
        torch.testing.assert_close(fresh.model.get_buffer(name), plain.model.get_buffer(name), **EXACT)


@pytest.mark.parametrize(
    ("how", "norm", "compiler"),
    [
        # Not with group norm: aot_eager believes torch's fake group norm, whose output is contiguous, but that of a CPU
        # keeps the layout of channels-last images. The inductor, which is what --compile uses, takes group norm apart.
        *((how, "batch", "aot_eager") for how in BACKENDS[1:4]),
        pytest.param({"backend": "exact"}, "group", "inductor", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_compiled_backbone_agrees(how: dict[str, Any], norm: str, compiler: str) -> None:
    torch.compiler.reset()  # else this test would run the graphs of another
    plain = trainee(partial(small, norm), method="cagrad", optimizer=PLAIN, **how)
    # A graph that is traversed K times can not give its buffers away.
    with functorch_config.patch(donated_buffer=how["backend"] != "exact"):
        made = trainee(lambda: torch.compile(small(norm), backend=compiler), method="cagrad", optimizer=PLAIN, **how)
        for number in range(3):
            one = batch(8, step=number, seed=number)
            step(plain, one)
            step(made, one)
    assert_close(dict(zip(parameters(plain), parameters(made).values(), strict=True)), parameters(plain))


class InPlace(nn.Module):
    """A head whose first operation is in place."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.relu_())


def signal_of(
    change: Callable[[MultiTaskModel], None] = lambda _: None, method: str = "mgda", **arguments: Any
) -> object:
    made = trainee(method=method, backend=None)
    assert isinstance(made.model, MultiTaskModel)
    change(made.model)
    images = torch.zeros(2, 3, 16, 16, dtype=torch.float64)
    return build_signal(made.weigher, made.model, made.model, tasks=list(TASKS), images=images, **arguments)


def test_a_head_that_begins_in_place_is_refused_before_training() -> None:
    def change(model: MultiTaskModel) -> None:
        model.heads["kind"] = InPlace(model.heads["kind"])

    with pytest.raises(ConfigError, match="in place"):
        signal_of(change)
    signal_of(change, backend="exact")


def test_a_frozen_backbone_has_nothing_to_balance() -> None:
    with pytest.raises(ConfigError, match="No shared parameter is trained"):
        signal_of(lambda model: model.backbone.requires_grad_(False) and None)


@pytest.mark.parametrize(
    ("method", "arguments", "fragment"),
    [
        ("mgda", {"backend": "scalar"}, "looks at gradients"),
        ("mgda", {"accumulates": True}, "several micro-batches"),
        ("gls", {"accumulates": True}, "several micro-batches"),
        ("uw", {"lag": True}, "nothing to delay"),
        ("static", {"lag": True}, "nothing to delay"),
        ("static", {"statistic": "samples"}, "Only the boundary knows"),
    ],
)
def test_what_does_not_go_together_is_refused(method: str, arguments: dict[str, Any], fragment: str) -> None:
    with pytest.raises(ConfigError, match=fragment):
        signal_of(method=method, **arguments)


@pytest.mark.parametrize(("method", "arguments"), [("uw", {}), ("static", {}), ("mgda", {"backend": "exact"})])
def test_what_may_accumulate(method: str, arguments: dict[str, Any]) -> None:
    signal_of(method=method, accumulates=True, **arguments)


def test_weights_of_a_balancer_that_are_not_finite_are_ones() -> None:
    class Wild(Stateless):
        needs = Needs.NOTHING

        def weights(self, stats: TaskStats) -> Tensor:
            return torch.tensor([1.0, math.nan], dtype=torch.float64)

    weigher = Weigher(Wild(), [1.0, 1.0], ("binary", "binary"), Ranks(1, CPU))
    assert weigher.ask(TaskStats(torch.ones(2, dtype=torch.float64), 0)).tolist() == [1, 1]


@pytest.mark.parametrize("statistic", [Samples(), Linear(), Linear(4), Joint(), Joint(4, batch_norm=True)])
@pytest.mark.parametrize("shape", [(12, 6), (12, 5, 6), (12, 6, 2, 3)])
def test_statistics_add_up_over_parts_of_a_batch(statistic: Statistic, shape: tuple[int, ...]) -> None:
    draws = torch.Generator().manual_seed(0)
    shared = tuple(torch.randn(s, generator=draws, dtype=torch.float64) for s in (shape, (12, 3)))
    each = [tuple(torch.randn(t.shape, generator=draws, dtype=torch.float64) for t in shared) for _ in range(3)]
    whole = statistic.gram(statistic.sums(shared, each), [t.shape for t in shared], 3)
    parts = [
        statistic.sums(tuple(t[at] for t in shared), [tuple(c[at] for c in own) for own in each])
        for at in (slice(0, 5), slice(5, 12))
    ]
    torch.testing.assert_close(statistic.gram(parts[0] + parts[1], [t.shape for t in shared], 3), whole)
    assert torch.linalg.eigvalsh(whole.double()).min() > -1e-3


def test_a_sketch_keeps_products_roughly() -> None:
    draws = torch.Generator().manual_seed(0)
    shared = (torch.randn(64, 256, generator=draws),)
    each = [(torch.randn(64, 256, generator=draws),) for _ in range(4)]
    full, sketched = (
        cosines(s.gram(s.sums(shared, each), [t.shape for t in shared], 4)) for s in (Linear(256), Linear(128))
    )
    assert (full - sketched).abs().max() < 0.1


def test_fidelity_is_the_correlation_of_cosines() -> None:
    rows = torch.randn(6, 4, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gram = rows @ rows.mT
    scales = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    assert fidelity(gram, gram * scales[:, None] * scales) == pytest.approx(1)
    assert abs(fidelity(gram, gram[torch.tensor([3, 4, 5, 0, 1, 2])])) < 0.9


def test_with_batch_norm_the_joint_statistic_is_centred_and_keeps_a_tenth_of_what_is_common() -> None:
    draws = torch.Generator().manual_seed(0)
    z, c = torch.rand(9, 5, generator=draws).double(), torch.randn(3, 9, 5, generator=draws).double()
    statistic = Joint(batch_norm=True)
    found = statistic.gram(statistic.sums((z,), [(own,) for own in c]), [z.shape], 3)
    centred = z - z.mean(0)
    kernel = torch.eye(9) + centred @ centred.T / centred.square().sum(1).mean() + 0.1
    torch.testing.assert_close(found, torch.einsum("kbd,bc,lcd->kl", c, kernel, c))
