"""Agreement with TorchJD's weightings, an independent implementation, to 1e-4 where its own solution is that exact."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from torch import Tensor

from mtl.balancing.build import build_balancer
from mtl.balancing.pcgrad import orders
from tests.helpers.grams import families, jacobian, stats

pytest.importorskip("torchjd", reason="the oracle is not installed")

from torchjd import aggregation, scalarization

FULL_RANK = families("plain", "scales", "aligned")
EXAMPLES = settings(max_examples=15)


def weights(name: str, gram: Tensor, **arguments: float) -> Tensor:
    return build_balancer(name, len(gram), 0, arguments).weights(stats(gram))


def assert_agree(ours: Tensor, theirs: Tensor, rows: Tensor) -> None:
    """The combined gradients agree to 1e-4, each part measured by the size of what is combined."""
    assert theirs.isfinite().all()
    sizes = theirs.abs() * rows.norm(dim=1)
    assert ((ours - theirs).abs() * rows.norm(dim=1)).max() <= 1e-4 * sizes.max()


def available(make: Callable[[], Any]) -> Any:
    """TorchJD's object, or a skip where a solver that it needs is not installed."""
    try:
        return make()
    except ImportError as error:
        pytest.skip(str(error))


@given(FULL_RANK)
@EXAMPLES
def test_imtl_g(rows: Tensor) -> None:
    gram = rows @ rows.T
    assert_agree(weights("imtl-g", gram), aggregation.IMTLGWeighting()(gram), rows)


@given(families("plain", "scales", "aligned", "dependent", "twins", "zero"))
@EXAMPLES
def test_aligned_mtl(rows: Tensor) -> None:
    gram = rows @ rows.T
    assert_agree(weights("aligned-mtl", gram), aggregation.AlignedMTLWeighting()(gram), rows)


@given(FULL_RANK)
@EXAMPLES
def test_mgda(rows: Tensor) -> None:
    gram = rows @ rows.T
    theirs = aggregation.MGDAWeighting(epsilon=1e-12, max_iters=400)(gram)
    slope = gram @ theirs
    assume((theirs @ slope - slope.min()) < 1e-10 * theirs @ slope)  # Frank-Wolfe has converged
    assert_agree(weights("mgda", gram), theirs, rows)


@given(families("plain", "aligned", "dependent"))
@EXAMPLES
def test_upgrad(rows: Tensor) -> None:
    gram = rows @ rows.T
    projector = available(lambda: aggregation._upgrad.projector_or_default(None))
    projector.norm_eps = projector.reg_eps = 1e-10
    ours, theirs = weights("upgrad", gram), aggregation.UPGradWeighting(projector=projector)(gram)
    # Weights of dependent gradients are not unique; the combination is, as far as large ones that cancel leave it.
    summands = theirs @ rows.norm(dim=1)
    assert ((ours - theirs) @ rows).norm() <= 1e-4 * (theirs @ rows).norm() + 3e-6 * summands


@given(families("plain", "scales", "aligned"))
@EXAMPLES
def test_cagrad(rows: Tensor) -> None:
    gram = rows @ rows.T
    oracle = available(lambda: aggregation.CAGradWeighting(c=0.4, norm_eps=1e-12))
    theirs = oracle(gram)
    assume(theirs.isfinite().all())  # their solver has found an answer
    # Near the optimum the problem is flat, so the weights of either are looser than the combination.
    ours = weights("cagrad", gram, c=0.4)
    apart = ((ours - theirs) @ rows).norm() / (theirs @ rows).norm()
    # Where lengths differ a thousandfold their solver stops short: then ours must be nearer to the optimum.
    assert apart <= 1e-4 or _dual(ours, gram, 0.4) < _dual(theirs, gram, 0.4)


def _dual(weights: Tensor, gram: Tensor, c: float) -> Tensor:
    """What CAGrad minimises over the simplex, at the point that its weights come from."""
    share = weights - 1 / len(gram)
    w, mean = share / share.sum(), torch.full_like(share, 1 / len(gram))
    return w @ gram @ mean + c * ((mean @ gram @ mean) * (w @ gram @ w)).sqrt()


@pytest.mark.parametrize("alpha", [1.0, 2.0])
@given(rows=families("plain", "aligned"))
@EXAMPLES
def test_fairgrad(rows: Tensor, alpha: float) -> None:
    gram = rows @ rows.T
    oracle = available(lambda: aggregation.FairGradWeighting(alpha=alpha))
    theirs = oracle(gram)
    residual = (gram @ theirs) * theirs ** (1 / alpha) - 1
    assume(residual.abs().max() < 1e-6)  # their least squares has converged
    assert_agree(weights("fairgrad", gram, alpha=alpha), theirs, rows)


@given(families("plain"))
@settings(max_examples=8)
def test_nash_mtl(rows: Tensor) -> None:
    """Their sequence of linearised problems stops at a residual of 1e-3, so theirs is the wider tolerance here."""
    gram = rows @ rows.T
    oracle = available(lambda: aggregation.NashMTL(n_tasks=len(rows), max_norm=1.0, optim_niter=100))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a solver that is not quite there
        theirs = oracle.weighting(rows)
    sizes = theirs.abs() * rows.norm(dim=1)
    assert ((weights("nash-mtl", gram) - theirs).abs() * rows.norm(dim=1)).max() <= 2e-2 * sizes.max()


@given(families("plain", "aligned"))
@settings(max_examples=10)
def test_nash_mtl_against_a_conic_solver(rows: Tensor) -> None:
    """The weights minimise a' G a / 2 - sum log a, whose gradient is G a - 1 / a."""
    cvxpy = pytest.importorskip("cvxpy")
    pytest.importorskip("clarabel")
    gram = rows @ rows.T
    a = cvxpy.Variable(len(rows))
    scaled = (rows / torch.linalg.matrix_norm(gram).sqrt()).numpy()
    objective = cvxpy.sum_squares(scaled.T @ a) / 2 - cvxpy.sum(cvxpy.log(a))
    problem = cvxpy.Problem(cvxpy.Minimize(objective))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it stopped short, which its status says too
        problem.solve(solver="CLARABEL", tol_gap_abs=1e-10, tol_gap_rel=1e-10)
    assume(problem.status == "optimal")
    theirs = torch.from_numpy(a.value)
    assert_agree(weights("nash-mtl", gram, max_norm=0), theirs, rows)
    assert_agree(weights("nash-mtl", gram, max_norm=0.5), theirs * (0.5 / (theirs @ rows).norm()).clamp(max=1), rows)


@pytest.mark.parametrize("tasks", [2, 4, 6])
def test_pcgrad(tasks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(8):
        rows = jacobian("plain", tasks, seed)
        gram = rows @ rows.T
        drawn = iter(orders(tasks, 0, 0))
        monkeypatch.setattr(torch, "randperm", lambda _, drawn=drawn: next(drawn))
        theirs = aggregation.PCGradWeighting()(gram)
        monkeypatch.undo()
        assert_agree(weights("pcgrad", gram), theirs, rows)


@pytest.mark.parametrize("tasks", [2, 4, 6])
def test_gradvac(tasks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    oracle, ours = aggregation.GradVacWeighting(beta=0.3), build_balancer("gradvac", tasks, 0, {"beta": 0.3})
    for step in range(8):
        rows = jacobian("aligned" if step % 2 else "plain", tasks, step)
        gram = rows @ rows.T
        # Theirs draws an order of the others; ours one of all, in which a task skips itself.
        drawn = iter(
            torch.tensor([other - (other > i) for other in row.tolist() if other != i])
            for i, row in enumerate(orders(tasks, 0, step))
        )
        monkeypatch.setattr(torch, "randperm", lambda _, drawn=drawn: next(drawn))
        theirs = oracle(gram)
        monkeypatch.undo()
        one = stats(gram, step=step)
        assert_agree(ours.weights(one), theirs, rows)
        ours.update(one)


def gradient(scalarizer: Any, losses: Tensor) -> Tensor:
    """The weights that a scalarizer gives: the derivative of its sum."""
    wanted = losses.clone().requires_grad_()
    (found,) = torch.autograd.grad(scalarizer(wanted), wanted)
    return found


LOSSES = torch.tensor([0.3, 1.0, 4.0], dtype=torch.float64)


def test_gls_and_stch() -> None:
    def ours(name: str, **arguments: float) -> Tensor:
        return build_balancer(name, 3, 0, arguments).weights(stats(None, LOSSES))

    torch.testing.assert_close(ours("gls"), gradient(scalarization.GeometricMean(), LOSSES), rtol=1e-6, atol=0)
    torch.testing.assert_close(ours("stch", mu=0.5), gradient(scalarization.STCH(mu=0.5), LOSSES), rtol=1e-6, atol=0)


def test_dwa() -> None:
    oracle, ours = scalarization.DWA(), build_balancer("dwa", 3, 0)
    for epoch in range(5):
        for step in range(3):
            losses = LOSSES * torch.tensor([0.9, 0.7, 0.5], dtype=torch.float64) ** epoch * (1 + 0.1 * step)
            one = stats(None, losses, epoch=epoch)
            torch.testing.assert_close(ours.weights(one), gradient(oracle, losses), rtol=1e-6, atol=0)
            ours.update(one)
        oracle.step()


def test_famo() -> None:
    oracle, ours = scalarization.FAMO(3).double(), build_balancer("famo", 3, 0)
    for step in range(10):
        losses = LOSSES * 0.9**step
        one = stats(None, losses, step=step)
        torch.testing.assert_close(ours.weights(one), gradient(oracle, losses), rtol=1e-4, atol=0)
        after = losses * torch.tensor([0.99, 0.9, 0.95], dtype=torch.float64)
        oracle.update(after)
        ours.update(one, after)


@pytest.mark.parametrize("name", ["uw", "imtl-l"])
def test_learned_scales(name: str) -> None:
    """Theirs are parameters for an optimizer of the user's; with Adam at our rate they move as ours."""
    oracle = (scalarization.UW if name == "uw" else scalarization.IMTLL)(3).double()
    optimizer = torch.optim.Adam(oracle.parameters(), lr=0.025)
    ours = build_balancer(name, 3, 0)
    for step in range(10):
        losses = LOSSES * 0.9**step
        one = stats(None, losses, step=step)
        one = type(one)(one.counts, step, losses, kinds=("regression",) * 3)
        torch.testing.assert_close(ours.weights(one), gradient(oracle, losses), rtol=1e-5, atol=0)
        optimizer.zero_grad()
        oracle(losses).backward()
        optimizer.step()
        ours.update(one)
