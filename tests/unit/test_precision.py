"""Half precision: parameters and losses stay whole, one scale for all ranks, bad steps leave no trace."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtl import precision
from mtl.config import Optimizer
from mtl.loop import train_step
from mtl.precision import Name, Precision, set_numerics
from mtl.trainee import Trainee
from tests.helpers.batches import CPU, batch, counts, gradients, trainee

PLAIN = Optimizer(name="sgd", lr=0.05, momentum=0.0)
HALF: list[Name] = ["bf16", "fp16"]
NEAR: dict[str, Any] = {"rtol": 0.05, "atol": 0.01}


def made(name: Name, **changes: Any) -> Trainee:
    one = trainee(precision=name, dtype=torch.float32, optimizer=PLAIN, **changes)
    if name == "fp16":
        one.precision.restore({"scale": 128.0, "good": 0})  # one at which these small batches do not overflow
    return one


def step(made: Trainee, number: int = 0, *, bad: bool = False) -> Tensor | None:
    one = batch(8, step=number, seed=number)
    if bad:
        one.colour[0] = np.nan
    return train_step(made, one, counts(one), CPU)


def apart(one: Trainee, other: Trainee) -> float:
    """The distance of two gradients, as a share of the length of the first."""
    a, b = (torch.cat([gradient.flatten() for gradient in gradients(each).values()]) for each in (one, other))
    assert b.dtype == torch.float32
    return float((a - b).norm() / a.norm())


def test_fp32_is_what_the_model_computes_by_itself() -> None:
    one = made("fp32")
    images = torch.randn(4, 3, 16, 16)
    for name, output in one.precision.apply(one.model, images).items():
        assert output.equal(one.model(images)[name])


@pytest.mark.parametrize("name", HALF)
def test_half_precision_is_near_to_fp32_and_not_equal(name: Name) -> None:
    whole, half = made("fp32"), made(name)
    for number in range(3):
        expected, got = step(whole, number), step(half, number)
        assert expected is not None
        assert got is not None
        torch.testing.assert_close(got, expected, **NEAR)
        assert not got.equal(expected)
        assert 0 < apart(whole, half) < 0.4


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_a_step_is_what_torch_makes_by_hand(name: Name, dtype: torch.dtype) -> None:
    one, reference = batch(8), made(name)
    half = made(name)
    assert step(half) is not None
    images = reference.standardise(torch.from_numpy(one.images), torch.from_numpy(one.colour))
    with torch.autocast("cpu", dtype=dtype):
        outputs = reference.model(images)
    loss = torch.zeros(())
    for spec, count in zip(reference.specs, counts(one).tolist(), strict=True):
        losses = spec.loss(outputs[spec.name].float(), torch.from_numpy(one.labels[spec.name]))
        loss = loss + spec.weight * losses / count
    scale = 128.0 if name == "fp16" else 1.0
    (loss * scale).backward()
    for parameter in reference.model.parameters():
        assert parameter.grad is not None
        parameter.grad /= scale
    assert apart(reference, half) < 1e-3


@pytest.mark.parametrize("name", HALF)
@pytest.mark.parametrize(("method", "backend"), [("cagrad", "boundary"), ("cagrad", "exact"), ("famo", None)])
def test_balancing_sees_through_the_scale(name: Name, method: str, backend: Any) -> None:
    whole, half = (made(each, method=method, backend=backend) for each in ("fp32", name))
    for number in range(3):
        assert step(half, number) is not None
        step(whole, number)
    torch.testing.assert_close(half.weigher.known, whole.weigher.known, **NEAR)


@pytest.mark.parametrize("clip_norm", [None, 1e-2, 1e6])
@pytest.mark.parametrize(("method", "backend"), [("static", None), ("cagrad", "boundary"), ("cagrad", "exact")])
def test_clipping_sees_through_the_scale(
    method: str, backend: Any, clip_norm: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scaled losses with forwards in fp32: powers of two cancel bit by bit, so the norm that is clipped is the same."""
    monkeypatch.delitem(precision.HALF, "fp16")
    changes: dict[str, Any] = {"clip_norm": clip_norm, "method": method, "backend": backend}
    scaled, plain, free = (
        made("fp16", **changes),
        made("fp32", **changes),
        made("fp32", **{**changes, "clip_norm": None}),
    )
    for number in range(3):
        for one in (scaled, plain, free):
            assert step(one, number) is not None
    assert scaled.precision.scale() == 128
    pairs = list(zip(scaled.model.parameters(), plain.model.parameters(), free.model.parameters(), strict=True))
    assert all(a.equal(b) for a, b, _ in pairs)
    assert all(b.equal(c) for _, b, c in pairs) == (clip_norm != 1e-2)


@pytest.mark.parametrize("name", HALF)
def test_accumulation_in_half_precision_changes_little(name: Name) -> None:
    whole, parts = made(name), made(name, micro_batch=3)
    step(whole)
    step(parts)
    assert apart(whole, parts) < (0.02 if name == "bf16" else 0.004)


def test_a_gradient_that_leaves_fp16_halves_the_scale_and_nothing_else() -> None:
    one = made("fp16")
    one.precision.restore({"scale": 2.0**24, "good": 7})
    before = [parameter.clone() for parameter in one.model.parameters()]
    assert step(one) is None
    assert one.precision.skipped()
    assert one.precision.state() == {"scale": 2.0**23, "good": 0}
    assert all(p.equal(b) for p, b in zip(one.model.parameters(), before, strict=True))
    while step(one) is None:
        assert one.precision.skipped()
    assert one.precision.scale() > 1
    assert any(not p.equal(b) for p, b in zip(one.model.parameters(), before, strict=True))


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_a_batch_that_is_not_finite_is_skipped(name: Name) -> None:
    one = made(name)
    before = [parameter.clone() for parameter in one.model.parameters()]
    assert step(one, bad=True) is None
    assert all(p.equal(b) for p, b in zip(one.model.parameters(), before, strict=True))
    assert one.precision.skipped() == (name == "fp16")


def test_the_scale_ends_at_one_where_it_is_not_to_blame() -> None:
    one = Precision("fp16", CPU)
    assert [one.skipped() for _ in range(18)] == [True] * 16 + [False] * 2
    assert one.scale() == 1


@settings(max_examples=30)
@given(st.lists(st.booleans(), max_size=60))
def test_the_scale_is_that_of_torch(good: list[bool]) -> None:
    """The same decisions as torch.amp.GradScaler's."""
    patience = 3
    theirs = torch.amp.GradScaler("cpu", growth_interval=patience)  # pyright: ignore[reportPrivateImportUsage]
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "_PATIENCE", patience)
        patch.setattr(precision, "_LARGEST", float("inf"))
        patch.setattr(precision, "_SMALLEST", 0.0)
        ours = Precision("fp16", CPU)
        for one in good:
            theirs.scale(parameter.sum())
            parameter.grad = torch.full((1,), 1.0 if one else torch.inf)
            theirs.step(optimizer)
            theirs.update()
            if one:
                ours.took()
            else:
                ours.skipped()
            assert ours.scale() == theirs.get_scale()


def test_the_scale_goes_on_where_it_was() -> None:
    one, other = Precision("fp16", CPU), Precision("fp16", CPU)
    one.skipped()
    one.took()
    other.restore(one.state())
    assert other.state() == one.state() == {"scale": 2.0**15, "good": 1}


@pytest.mark.parametrize(("name", "products"), [("fp32", "ieee"), ("tf32", "tf32"), ("bf16", "ieee")])
@pytest.mark.parametrize("deterministic", [True, False])
def test_the_process_is_told(name: Name, products: str, deterministic: bool) -> None:
    try:
        set_numerics(name, deterministic=deterministic)
        assert torch.backends.cuda.matmul.fp32_precision == products
        assert torch.backends.cudnn.conv.fp32_precision == products  # pyright: ignore
        assert torch.are_deterministic_algorithms_enabled() == deterministic
        assert torch.backends.cudnn.benchmark != deterministic
    finally:
        set_numerics("fp32", deterministic=False)
