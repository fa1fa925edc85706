"""One result on 1, 2 and 4 ranks for every method, with labels missing unevenly: one rank has none of some task."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._functorch import config as functorch
from torch.nn.parallel import DistributedDataParallel

from mtl.balancing import METHODS
from mtl.balancing.base import Needs
from mtl.balancing.build import build_balancer
from mtl.config import Optimizer
from mtl.data.batch import Batch
from mtl.loop import train_step
from mtl.runtime import LocalRuntime
from mtl.trainee import Trainee
from tests.helpers.backbones import small
from tests.helpers.batches import CPU, batch, counts, hide, rows, trainee
from tests.helpers.engine import TASKS
from tests.helpers.ranks import Group, values

STEPS = 20
ROWS = 16
ADAM = Optimizer(name="adam", lr=1e-3)


def frozen() -> nn.Module:
    """A backbone for frozen batch norm, with statistics as of some training."""
    net = small("batch")
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return net


FROZEN: dict[str, Any] = {"backbone": frozen, "frozen_batch_norm": True}
CASES: dict[str, dict[str, Any]] = {
    **{name: {"method": name} for name in METHODS},
    "pcgrad, exact": {"method": "pcgrad", "backend": "exact"},
    "mgda, exact": {"method": "mgda", "backend": "exact"},
    "nash-mtl, every 3": {"method": "nash-mtl", "backend": "exact", "refresh_steps": 3},
    "upgrad, samples": {"method": "upgrad", "statistic": "samples"},
    "cagrad, lag": {"method": "cagrad", "lag": True},
    "gls, lag": {"method": "gls", "lag": True},
    "gls, frozen": {"method": "gls", **FROZEN},
    "upgrad, frozen": {"method": "upgrad", **FROZEN},
    "mgda, exact, frozen": {"method": "mgda", "backend": "exact", **FROZEN},
}
Trace = list[list[float]]


def whole(step: int) -> Batch:
    """The global batch of a step. The last quarter of the rows has no label of `kind`, some steps none of `angle`."""
    one = batch(ROWS, step=step, seed=step)
    one.epoch = step // 5
    hide(one, "kind", slice(12, 16))
    hide(one, "object", [0, 1, 7])
    if step % 7 == 3:
        hide(one, "angle", slice(None))
    return one


def part(one: Batch, rank: int, size: int) -> Batch:
    mine = rows(one, slice(rank * ROWS // size, (rank + 1) * ROWS // size))
    mine.epoch = one.epoch
    return mine


def trained(made: Trainee, steps: range, rank: int, size: int) -> Trace:
    """Weights and this rank's losses after each step."""
    trace: Trace = []
    for number in steps:
        one = whole(number)
        losses = train_step(made, part(one, rank, size), counts(one), CPU)
        assert losses is not None
        trace.append([*made.weigher.known.tolist(), *losses.tolist()])
    return trace


def every_method() -> dict[str, Trace]:
    """Traces by case; of losses the sums over ranks."""
    found: dict[str, Trace] = {}
    with LocalRuntime(gpu=False, threads=1, listen=lambda _: None) as runtime:
        for case, how in CASES.items():
            made = trainee(optimizer=ADAM, world_size=runtime.world_size, wrap=runtime.parallel, **how)
            trace = torch.tensor(trained(made, range(STEPS), runtime.rank, runtime.world_size), dtype=torch.float64)
            trace[:, 4:] = runtime.sum(trace[:, 4:].contiguous())
            found[case] = trace.tolist()
    return found


@pytest.fixture(scope="module")
def alone() -> dict[str, Trace]:
    return {case: trained(trainee(optimizer=ADAM, **how), range(STEPS), 0, 1) for case, how in CASES.items()}


@pytest.mark.parametrize("world_size", [2, 4])
def test_weights_and_losses_do_not_depend_on_the_number_of_ranks(
    alone: dict[str, Trace], world_size: int, tmp_path: Path
) -> None:
    for found in values(Group(tmp_path / "ranks", world_size, every_method).wait()):
        for case, trace in found.items():
            np.testing.assert_allclose(trace, alone[case], rtol=1e-5, atol=1e-8, err_msg=case)


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_goes_on_to_the_bit(case: str, alone: dict[str, Trace]) -> None:
    first = trainee(optimizer=ADAM, **CASES[case])
    trained(first, range(11), 0, 1)  # within an epoch, and between two exact Gram matrices
    second = trainee(optimizer=ADAM, **CASES[case])
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.weigher.load_state_dict(json.loads(json.dumps(first.weigher.state_dict())))
    assert trained(second, range(11, STEPS), 0, 1) == alone[case][11:]


def test_cases_cover_every_backend_of_a_gradient_method() -> None:
    looks = [name for name in METHODS if Needs.GRAM in build_balancer(name, 2, 0).needs]
    assert len(looks) == 11


def kinds_of_parallel() -> dict[str, Trace]:
    """Two cases under DistributedDataParallel with other settings; weights alone."""
    ways: dict[str, dict[str, Any]] = {
        "plain": {},
        "static graph": {"static_graph": True},
        "unused": {"find_unused_parameters": True},
        "tiny buckets": {"bucket_cap_mb": 0.001},
        "views": {"gradient_as_bucket_view": True},
    }
    found: dict[str, Trace] = {}
    with LocalRuntime(gpu=False, threads=1, listen=lambda _: None) as runtime:
        for way, settings in ways.items():
            made = trainee(
                optimizer=ADAM,
                world_size=runtime.world_size,
                wrap=lambda model, settings=settings: DistributedDataParallel(model, **settings),
                method="nash-mtl",
            )
            found[way] = [row[:4] for row in trained(made, range(6), runtime.rank, runtime.world_size)]
    return found


def test_settings_of_the_parallel_module_change_nothing(tmp_path: Path, alone: dict[str, Trace]) -> None:
    for found in values(Group(tmp_path / "ranks", 2, kinds_of_parallel).wait()):
        for way, trace in found.items():
            np.testing.assert_allclose(trace, [row[:4] for row in alone["nash-mtl"][:6]], rtol=1e-6, err_msg=way)


def compiled() -> dict[str, Trace]:
    """Traces of cases whose backbone is compiled; of losses the sums over ranks."""
    found: dict[str, Trace] = {}
    with LocalRuntime(gpu=False, threads=1, listen=lambda _: None) as runtime, functorch.patch(donated_buffer=False):
        for case in ("upgrad, frozen", "mgda, exact, frozen"):
            how = CASES[case] | {"backbone": lambda: torch.compile(frozen(), backend="aot_eager")}
            made = trainee(optimizer=ADAM, world_size=runtime.world_size, wrap=runtime.parallel, **how)
            trace = torch.tensor(trained(made, range(6), runtime.rank, runtime.world_size), dtype=torch.float64)
            trace[:, 4:] = runtime.sum(trace[:, 4:].contiguous())
            found[case] = trace.tolist()
    return found


@pytest.mark.slow
def test_a_compiled_backbone_agrees_on_two_ranks(tmp_path: Path, alone: dict[str, Trace]) -> None:
    for found in values(Group(tmp_path / "ranks", 2, compiled).wait()):
        for case, trace in found.items():
            np.testing.assert_allclose(trace, alone[case][:6], rtol=1e-6, atol=1e-9, err_msg=case)


def one_exact_step() -> dict[str, Any]:
    """What telemetry says of one step with the exact Gram matrix."""
    with LocalRuntime(gpu=False, threads=1, listen=lambda _: None) as runtime:
        made = trainee(world_size=runtime.world_size, wrap=runtime.parallel, method="mgda", backend="exact")
        trained(made, range(1), runtime.rank, runtime.world_size)
        return made.weigher.telemetry.report(list(TASKS))


def test_the_debiased_gram_matrix_has_no_products_within_a_rank(tmp_path: Path) -> None:
    def gram(own: Batch) -> torch.Tensor:
        made: Any = trainee(method="tests.unit.balancing.test_balancing_signals:Fixed", backend="exact")
        train_step(made, own, counts(one), CPU)
        return made.weigher.balancer.seen[0].gram

    one = whole(0)
    halves = [part(one, rank, 2) for rank in range(2)]
    shares = torch.stack([counts(half) / counts(one) for half in halves])
    within = gram(halves[0]) + gram(halves[1])
    lengths = ((gram(one) - within) / (1 - shares.T @ shares)).diagonal().clamp(min=0).sqrt()
    for found in values(Group(tmp_path / "ranks", 2, one_exact_step).wait()):
        assert list(found["unbiased"]["norms"].values()) == pytest.approx(lengths.tolist(), rel=1e-6)


def a_step_that_one_rank_spoils() -> dict[str, Any]:
    """By backend, whether the step was made, and the weights afterwards. The method raises on what is not finite."""
    found: dict[str, Any] = {}
    with LocalRuntime(gpu=False, threads=1, listen=lambda _: None) as runtime:
        for backend in ("boundary", "exact"):
            how: Any = {"method": "tests.unit.balancing.test_balancing_own:Strict", "backend": backend}
            made = trainee(world_size=runtime.world_size, wrap=runtime.parallel, **how)
            one = whole(0)
            one.colour[-1] = np.nan
            losses = train_step(made, part(one, runtime.rank, runtime.world_size), counts(one), CPU)
            found[backend] = losses is not None, made.weigher.known.tolist()
    return found


def test_what_one_rank_spoils_all_skip_though_the_method_would_raise(tmp_path: Path) -> None:
    for found in values(Group(tmp_path / "ranks", 2, a_step_that_one_rank_spoils).wait()):
        assert found == {backend: [False, [1.0] * 4] for backend in ("boundary", "exact")}
