"""What every balancing method must do, and what the paper of each promises."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtl.balancing import METHODS, registry
from mtl.balancing.base import Balancer, Needs, TaskStats
from mtl.balancing.build import build_balancer
from mtl.balancing.pcgrad import orders
from mtl.errors import ConfigError
from tests.helpers.grams import families, jacobian, stats

GRAM = [name for name in METHODS if Needs.GRAM in build_balancer(name, 2, 0).needs]
LOSS = [name for name in METHODS if name not in GRAM]
LEARNING = ["uw", "imtl-l", "dwa", "famo", "gradnorm", "gradvac"]
RANDOM = ["rlw", "pcgrad", "gradvac"]
DESCENT = ["mgda", "upgrad", "nash-mtl", "fairgrad"]
LOSSES = st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=6).map(lambda x: torch.tensor(x, dtype=torch.float64))
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-7}


def made(name: str, tasks: int, **arguments: float) -> Balancer:
    return build_balancer(name, tasks, 7, arguments)


def weigh(name: str, gram: Tensor, **arguments: float) -> Tensor:
    return made(name, len(gram), **arguments).weights(stats(gram))


def after_steps(name: str, tasks: int, steps: int, seed: int = 0) -> Balancer:
    balancer = made(name, tasks)
    for step in range(steps):
        one = step_of(tasks, step, seed)
        balancer.weights(one)
        balancer.update(one, one.losses * 0.9 + 0.01 if one.losses is not None else None)
    return balancer


def step_of(tasks: int, step: int, seed: int = 0) -> TaskStats:
    draws = torch.Generator().manual_seed(1000 * seed + step)
    losses = torch.rand(tasks, generator=draws, dtype=torch.float64) + 0.1
    rows = jacobian("plain", tasks, 1000 * seed + step)
    return stats(rows @ rows.T, losses, step=step, epoch=step // 3)


@pytest.mark.parametrize("name", METHODS)
@settings(max_examples=40)
@given(families(), st.integers(0, 3))
def test_weights_are_finite_whatever_the_gradients(name: str, rows: Tensor, steps: int) -> None:
    balancer = after_steps(name, len(rows), steps)
    weights = balancer.weights(stats(rows @ rows.T, step=steps))
    assert weights.shape == (len(rows),)
    assert weights.dtype == torch.float64
    assert weights.isfinite().all()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_gives_ones(name: str, bad: float) -> None:
    gram, losses = torch.eye(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    gram[0, 1] = gram[1, 0] = losses[2] = bad
    weights = made(name, 3).weights(stats(gram, losses))
    if made(name, 3).needs & (Needs.GRAM | Needs.LOSSES):
        assert weights.tolist() == [1, 1, 1]
    assert weights.isfinite().all()


@pytest.mark.parametrize("name", METHODS)
def test_one_task_is_plain_training(name: str) -> None:
    balancer = made(name, 1)
    for step in range(4):
        one = stats(torch.tensor([[3.0]], dtype=torch.float64), torch.tensor([0.2]), step=step, epoch=step)
        assert balancer.weights(one).tolist() == [1]
        balancer.update(one, torch.tensor([0.1], dtype=torch.float64))


@pytest.mark.parametrize("name", METHODS)
@given(families(), st.integers(0, 10_000))
@settings(max_examples=25)
def test_the_order_of_tasks_does_not_matter(name: str, rows: Tensor, seed: int) -> None:
    """Through some steps that are learned from; what is drawn goes with the tasks."""
    tasks = len(rows)
    order = torch.randperm(tasks, generator=torch.Generator().manual_seed(seed))
    last = stats(rows @ rows.T, torch.linspace(0.5, 2, tasks, dtype=torch.float64), step=4, epoch=2)
    steps = [*(step_of(tasks, step, seed) for step in range(4)), last]
    before = through(made(name, tasks), steps, torch.arange(tasks))
    with pytest.MonkeyPatch.context() as patched:
        place, normal = order.argsort(), torch.randn
        patched.setattr(torch, "randn", lambda *args, **how: normal(*args, **how)[order])
        for module in ("pcgrad", "gradvac"):
            patched.setattr(f"mtl.balancing.{module}.orders", lambda *args: place[orders(*args)[order]])
        after = through(made(name, tasks), steps, order)
    # The combinations are compared, as weights of dependent gradients are not unique.
    torch.testing.assert_close(after @ rows[order], before @ rows, rtol=1e-4, atol=1e-5 * float(rows.norm()))


def through(balancer: Balancer, steps: list[TaskStats], order: Tensor) -> Tensor:
    """The weights at the last of some steps, with the tasks in this order; those before it are learned from."""
    weights = torch.empty(0)
    for one in steps:
        assert one.losses is not None
        assert one.gram is not None
        kinds = tuple("regression" if number % 2 else "multiclass" for number in order.tolist())
        own = replace(one, losses=one.losses[order], gram=one.gram[order][:, order], kinds=kinds)
        weights = balancer.weights(own)
        balancer.update(own, (one.losses * torch.linspace(0.8, 1, len(order), dtype=torch.float64))[order])
    return weights


def test_random_weights_prefer_no_task() -> None:
    balancer = made("rlw", 4)
    draws = torch.stack([balancer.weights(stats(None, torch.ones(4), step=step)) for step in range(2000)])
    assert draws.mean(0).tolist() == pytest.approx([0.25] * 4, abs=0.02)


@pytest.mark.parametrize("name", METHODS)
@given(families("plain", "scales", "aligned"))
@settings(max_examples=20)
def test_an_absent_task_is_left_out(name: str, rows: Tensor) -> None:
    tasks = len(rows)
    losses = torch.linspace(0.5, 2, tasks, dtype=torch.float64)
    there = torch.arange(tasks) != tasks // 2
    gram = (rows * there[:, None]) @ (rows * there[:, None]).T
    balancer = after_steps(name, tasks, 2) if name not in RANDOM else made(name, tasks)
    state = json.dumps(balancer.state_dict())
    weights = balancer.weights(stats(gram, losses * there, counts=there.double(), step=2))
    assert weights.isfinite().all()
    assert json.dumps(balancer.state_dict()) == state, "weights() changed something"
    balancer.update(stats(gram, losses * there, counts=there.double(), step=2), losses * there)
    assert balancer.weights(stats(gram, losses, step=3)).isfinite().all()
    if name in GRAM and name not in (*LEARNING, *RANDOM):
        alone = weigh(name, gram[there][:, there])
        expected = alone if len(alone) > 1 else torch.ones(1, dtype=torch.float64)
        torch.testing.assert_close(weights[there], expected, **CLOSE)


@pytest.mark.parametrize("name", LEARNING)
def test_an_absent_task_is_not_learned_about(name: str) -> None:
    balancer = after_steps(name, 3, 4)
    before = balancer.state_dict()
    there = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    one = step_of(3, 4)
    assert one.losses is not None
    assert one.gram is not None
    gram = one.gram * there[:, None] * there
    balancer.update(stats(gram, one.losses * there, counts=there, step=4, epoch=1), one.losses * there * 0.9)
    after = balancer.state_dict()
    if name == "gradvac":
        assert [row[2] for row in after["usual"]] == [row[2] for row in before["usual"]]
    elif name == "dwa":
        assert (after["sums"][2], after["counts"][2]) == (before["sums"][2], before["counts"][2])
    elif name == "gradnorm":
        assert after["weights"]["steps"][2] == before["weights"]["steps"][2]
    else:
        assert after["value"][2] == before["value"][2]
        assert after["value"][0] != before["value"][0]


@pytest.mark.parametrize("name", METHODS)
def test_a_restored_balancer_goes_on_to_the_bit(name: str) -> None:
    first = after_steps(name, 3, 7)
    second = made(name, 3)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for step in range(7, 14):
        one = step_of(3, step)
        assert one.losses is not None
        assert first.weights(one).equal(second.weights(one))
        for balancer in (first, second):
            balancer.update(one, one.losses * 0.8)
    assert first.state_dict() == second.state_dict()


@pytest.mark.parametrize("name", RANDOM)
def test_random_methods_are_keyed_by_seed_and_step(name: str) -> None:
    rows = jacobian("plain", 5, 3)
    one = [stats(rows @ rows.T, step=step) for step in range(6)]
    torch.manual_seed(0)
    first = [made(name, 5).weights(s).tolist() for s in one]
    torch.manual_seed(1)
    assert [made(name, 5).weights(s).tolist() for s in one] == first
    assert len({tuple(weights) for weights in first}) > 1


@pytest.mark.parametrize("name", DESCENT)
@given(families())
@settings(max_examples=60)
def test_no_task_is_made_worse_where_that_is_promised(name: str, rows: Tensor) -> None:
    gram = rows @ rows.T
    weights = weigh(name, gram)
    progress, norms = gram @ weights, gram.diagonal().sqrt()
    # Near a stationary point the weighted gradients cancel: what a ridge and the solvers leave is a share of their
    # lengths, not of that of their sum.
    assert (progress >= -1e-6 * norms * (weights.abs() * norms).sum() - 1e-12).all()


@pytest.mark.parametrize("name", DESCENT)
@given(families("stationary"))
@settings(max_examples=30)
def test_a_stationary_point_is_left_alone(name: str, rows: Tensor) -> None:
    gram = rows @ rows.T
    weights = weigh(name, gram)
    length = (weights @ rows).norm()
    assert length <= 2e-3 * max(1.0, float(rows.norm(dim=1).mean()))


@pytest.mark.parametrize("name", ["mgda", "upgrad", "cagrad", "aligned-mtl", "imtl-g", "norm", "pcgrad", "gradvac"])
@given(families("plain", "aligned", "scales"), st.sampled_from([1e-3, 10.0, 1e4]))
@settings(max_examples=15)
def test_weights_do_not_depend_on_the_scale_of_all_gradients(name: str, rows: Tensor, scale: float) -> None:
    torch.testing.assert_close(weigh(name, rows @ rows.T * scale**2), weigh(name, rows @ rows.T), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["nash-mtl", "imtl-g", "fairgrad", "norm"])
@given(families("plain", "aligned"), st.integers(0, 1000))
@settings(max_examples=15)
def test_the_direction_does_not_depend_on_the_scale_of_a_task(name: str, rows: Tensor, seed: int) -> None:
    scales = 0.3 + 3 * torch.rand(len(rows), 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    first = weigh(name, rows @ rows.T) @ rows
    second = weigh(name, (rows * scales) @ (rows * scales).T) @ (rows * scales)
    assert torch.cosine_similarity(first, second, dim=0).abs() > 1 - 1e-4


@given(families("plain", "scales", "aligned"), st.sampled_from([0.5, 1.0, 2.0]))
@settings(max_examples=30)
def test_fairgrad_solves_its_equation(rows: Tensor, alpha: float) -> None:
    gram = rows @ rows.T
    weights = weigh("fairgrad", gram, alpha=alpha)
    torch.testing.assert_close(gram @ weights, weights ** (-1 / alpha), rtol=1e-4, atol=1e-9)


@given(families("plain", "scales", "aligned"))
@settings(max_examples=30)
def test_nash_mtl_solves_its_equation_and_keeps_to_its_norm(rows: Tensor) -> None:
    gram = rows @ rows.T
    weights = weigh("nash-mtl", gram, max_norm=0)
    norm = torch.linalg.matrix_norm(gram)
    torch.testing.assert_close(gram @ weights / norm, 1 / weights, rtol=1e-4, atol=1e-9)
    assert (weigh("nash-mtl", gram) @ rows).norm() <= 1 + 1e-9


@given(families("plain", "scales", "aligned", "dependent"))
@settings(max_examples=30)
def test_mgda_is_the_shortest_combination(rows: Tensor) -> None:
    gram = rows @ rows.T
    weights = weigh("mgda", gram)
    assert weights.sum().item() == pytest.approx(1, rel=1e-9)
    assert (weights >= 0).all()
    # Optimality: no corner is downhill.
    slope = gram @ weights
    assert (slope >= (weights @ slope) - 1e-6 * gram.diagonal().mean()).all()


@given(families("plain", "aligned"))
@settings(max_examples=20)
def test_imtl_g_projects_equally_on_every_direction(rows: Tensor) -> None:
    weights = weigh("imtl-g", rows @ rows.T)
    projections = (rows / rows.norm(dim=1, keepdim=True)) @ (weights @ rows)
    assert weights.sum().item() == pytest.approx(1, rel=1e-9)
    torch.testing.assert_close(projections, projections[:1].expand(len(rows)), rtol=1e-6, atol=1e-9)


@given(families("plain", "aligned"), st.floats(0.0, 0.9))
@settings(max_examples=20)
def test_cagrad_stays_within_its_ball(rows: Tensor, c: float) -> None:
    direction, mean = weigh("cagrad", rows @ rows.T, c=c) @ rows, rows.mean(0)
    assert (direction - mean).norm() <= c * mean.norm() * (1 + 1e-6) + 1e-9
    worst = (rows @ direction).min()
    assert worst >= (rows @ mean).min() - 1e-6 * float(rows.norm()) ** 2


def test_pcgrad_takes_out_a_pairwise_conflict_and_nothing_else() -> None:
    rows = torch.tensor([[1.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    assert (weigh("pcgrad", rows @ rows.T) @ rows).tolist() == pytest.approx([0.5, 1.5])
    agreeing = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    assert weigh("pcgrad", agreeing @ agreeing.T).tolist() == [1, 1]


def test_gradvac_aims_at_the_cosine_that_a_pair_usually_has() -> None:
    together = torch.tensor([[1.0, 0.0], [1.0, 0.2]], dtype=torch.float64)
    apart = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    balancer = made("gradvac", 2, beta=0.5)
    assert balancer.weights(stats(apart @ apart.T)).tolist() == [1, 1]
    for step in range(8):
        balancer.update(stats(together @ together.T, step=step))
    bent = balancer.weights(stats(apart @ apart.T, step=8))
    assert (bent > 1.5).all()


@given(LOSSES)
@settings(max_examples=30)
def test_loss_methods_weigh_by_the_derivative_of_their_loss(losses: Tensor) -> None:
    for name, total in {
        "gls": lambda x: x.log().mean().exp(),
        "si": lambda x: x.log().sum(),
        "stch": lambda x: 0.1 * torch.logsumexp(x / (0.1 * len(x)), 0),
    }.items():
        wanted = losses.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(total(wanted), wanted)
        torch.testing.assert_close(made(name, len(losses)).weights(stats(None, losses)), gradient, **CLOSE)


@pytest.mark.parametrize("name", ["uw", "imtl-l"])
def test_learned_scales_bring_every_loss_to_one_size(name: str) -> None:
    losses = torch.tensor([0.2, 1.0, 5.0], dtype=torch.float64)
    balancer = made(name, 3, lr=0.05)
    for step in range(600):
        balancer.update(stats(None, losses, step=step))
    scaled = balancer.weights(stats(None, losses)) * losses
    assert scaled.tolist() == pytest.approx([scaled[0].item()] * 3, rel=0.02)


def test_uncertainty_weighs_squared_errors_by_half() -> None:
    kinds = ("multiclass", "regression", "circular")
    one = TaskStats(torch.ones(3), 0, kinds=kinds)
    assert made("uw", 3).weights(one).tolist() == [1, 0.5, 0.5]


def test_dwa_follows_the_last_two_epochs() -> None:
    balancer = made("dwa", 2, temperature=2.0)
    epochs = [[4.0, 4.0], [4.0, 2.0]]
    for epoch, losses in enumerate(epochs):
        one = stats(None, torch.tensor(losses), epoch=epoch)
        assert balancer.weights(one).tolist() == [1, 1]
        # Two batches whose means differ; what counts is the mean over labels.
        for share, labels in ((0.5, 3.0), (2.5, 1.0)):
            counts = torch.full((2,), labels, dtype=torch.float64)
            balancer.update(stats(None, torch.tensor(losses) * share, counts=counts, epoch=epoch))
    expected = 2 * torch.tensor([1.0, 0.5], dtype=torch.float64).div(2).softmax(0)
    assert balancer.weights(stats(None, torch.ones(2), epoch=2)).tolist() == pytest.approx(expected.tolist())


def test_famo_gives_weight_to_the_task_that_improves_less() -> None:
    balancer, losses = made("famo", 2), torch.ones(2, dtype=torch.float64)
    for step in range(20):
        balancer.update(stats(None, losses, step=step), torch.tensor([0.5, 0.99], dtype=torch.float64))
    weights = balancer.weights(stats(None, losses))
    assert weights[1] > weights[0]
    assert weights.sum().item() == pytest.approx(1)


def test_gradnorm_shrinks_the_task_with_the_large_gradient() -> None:
    balancer = made("gradnorm", 2)
    gram = torch.tensor([[100.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    for step in range(30):
        balancer.update(stats(gram, torch.ones(2), step=step))
    weights = balancer.weights(stats(gram))
    assert weights[0] < 0.7 < 1.3 < weights[1]
    assert weights.sum().item() == pytest.approx(2)


def test_rlw_draws_positive_weights_that_sum_to_one() -> None:
    weights = made("rlw", 4).weights(stats(None, torch.ones(4), step=3))
    assert (weights > 0).all()
    assert weights.sum().item() == pytest.approx(1)


def test_static_weights_are_ones() -> None:
    assert made("static", 3).weights(stats(None)).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("method", "arguments", "fragment"),
    [
        ("nosuch", {}, "no balancing method 'nosuch'"),
        ("nosuch.module:Class", {}, "can not be imported"),
        ("mtl.balancing.mgda:NoSuch", {}, "can not be imported"),
        ("mgda", {"alpha": 1.0}, "does not take these arguments"),
        ("fairgrad", {"alpha": -1.0}, "alpha must be positive"),
        ("collections:OrderedDict", {}, "can not be built|can be built|is no balancer"),
    ],
)
def test_what_is_no_method_is_refused(method: str, arguments: dict[str, float], fragment: str) -> None:
    with pytest.raises(ConfigError, match=fragment):
        build_balancer(method, 2, 0, arguments)


def test_the_refusal_names_every_method() -> None:
    with pytest.raises(ConfigError) as caught:
        build_balancer("nosuch", 2, 0)
    assert all(name in str(caught.value.expected) for name in METHODS)


def test_a_name_can_not_be_given_twice() -> None:
    with pytest.raises(ConfigError, match="called 'a'"):
        registry([("a", "x:Y"), ("b", "x:Z"), ("a", "x:W")])
