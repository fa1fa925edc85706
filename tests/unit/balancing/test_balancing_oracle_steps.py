"""Whole training steps weigh as TorchJD's weightings do on Gram matrices of gradients taken by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mtl.balancing.pcgrad import orders
from tests.helpers.batches import batch, hide, trainee
from tests.unit.balancing.test_balancing_signals import by_hand, step

pytest.importorskip("torchjd", reason="the oracle is not installed")

from torchjd import aggregation

from tests.unit.balancing.test_balancing_oracle import available

TASKS = 4


def exact_projector() -> Any:
    """TorchJD's default, with less regularisation."""
    projector = aggregation._upgrad.projector_or_default(None)
    projector.norm_eps = projector.reg_eps = 1e-10
    return projector


ORACLES: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "mgda": lambda: aggregation.MGDAWeighting(epsilon=1e-12, max_iters=2000),
    "imtl-g": aggregation.IMTLGWeighting,
    "aligned-mtl": aggregation.AlignedMTLWeighting,
    "upgrad": lambda: aggregation.UPGradWeighting(projector=exact_projector()),
    "cagrad": lambda: aggregation.CAGradWeighting(c=0.4, norm_eps=1e-12),
    "fairgrad": lambda: aggregation.FairGradWeighting(alpha=1.0),
    "pcgrad": aggregation.PCGradWeighting,
    "gradvac": lambda: aggregation.GradVacWeighting(beta=0.01),
}


def parameter_gram(each: list[dict[str, Tensor]], *_: Any) -> Tensor:
    rows = [torch.cat([g.flatten() for name, g in own.items() if name.startswith("backbone.")]) for own in each]
    return torch.stack(rows) @ torch.stack(rows).T


def joint_gram(_: Any, features: Tensor, cotangents: list[Tensor]) -> Tensor:
    kernel = torch.eye(len(features)).double() + features @ features.T / features.square().sum(1).mean()
    c = torch.stack(cotangents)
    return torch.einsum("kbd,bc,lcd->kl", c, kernel, c)


@pytest.mark.parametrize(("backend", "gram_of"), [("exact", parameter_gram), ("boundary", joint_gram)])
@pytest.mark.parametrize("method", ORACLES)
def test_a_step_weighs_as_the_oracle(
    method: str, backend: str, gram_of: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    oracle = available(ORACLES[method])
    made = trainee(method=method, backend=backend)
    for number in range(3):
        one = batch(12, step=number, seed=number)
        hide(one, "object", [0, 5, 7])
        gram = gram_of(*by_hand(made, one))
        assert step(made, one) is not None
        # What theirs draws is an order of all tasks, or with GradVac of the others.
        drawn = orders(TASKS, 0, number).tolist()
        if method == "gradvac":
            drawn = [[other - (other > i) for other in row if other != i] for i, row in enumerate(drawn)]
        with monkeypatch.context() as patched:
            patched.setattr(torch, "randperm", lambda *_, rows=drawn, **__: torch.tensor(rows.pop(0)))
            theirs = oracle(gram)
        sizes = gram.diagonal().sqrt()
        apart = (made.weigher.known - theirs).abs() * sizes
        assert apart.max() <= 1e-4 * (theirs.abs() * sizes).max()
