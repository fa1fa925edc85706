"""The average of weights: over samples, without a trace in training, exactly resumed."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mtl.checkpoint import load, save
from mtl.ema import Ema
from mtl.errors import CheckpointError
from tests.helpers.backbones import small
from tests.helpers.memory_store import MemoryStore
from tests.helpers.tensors import assert_same

EXACT: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}


def point(value: float = 0.0) -> nn.Module:
    model = nn.Linear(1, 1, bias=False).double()
    place(model, value)
    return model


@torch.no_grad()
def place(model: nn.Module, value: float) -> None:
    for parameter in model.parameters():
        parameter.fill_(value)


def held(ema: Ema) -> float:
    return ema.state()[0]["weight"].item()


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 50), st.floats(-1, 1)), min_size=1, max_size=8))
def test_young_it_is_the_mean_over_samples(steps: list[tuple[int, float]]) -> None:
    model = point(1e6)
    ema = Ema(model, 1e9)
    for samples, value in steps:
        place(model, value)
        ema.update(samples)
    mean = sum(n * value for n, value in steps) / sum(n for n, _ in steps)
    assert held(ema) == pytest.approx(mean, abs=1e-9)


@settings(max_examples=30)
@given(batch=st.integers(1, 64), parts=st.integers(2, 8), horizon=st.floats(10, 1000))
def test_it_spans_samples_whatever_the_batch(batch: int, parts: int, horizon: float) -> None:
    results: list[float] = []
    for step in (batch, batch * parts):
        model = point(1.0)
        ema = Ema(model, horizon)
        ema.update(10_000)  # grown: a horizon has been seen
        place(model, 0.0)
        for _ in range(batch * parts // step):
            ema.update(step)
        results.append(held(ema))
    assert results == pytest.approx([math.exp(-batch * parts / horizon)] * 2)


def test_within_the_model_holds_the_average_and_afterwards_what_it_held() -> None:
    torch.manual_seed(0)
    model = small("batch")
    ema = Ema(model, 100)
    for _ in range(3):
        model(torch.randn(4, 3, 16, 16))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        ema.update(32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    average = {name: tensor.clone() for name, tensor in ema.state()[0].items()}
    assert not all(tensor.equal(before[name]) for name, tensor in average.items())
    with ema.applied():
        assert_same(model.state_dict(), average)
    assert_same(model.state_dict(), before)
    assert_same(ema.state()[0], average)
    with pytest.raises(RuntimeError), ema.applied():
        raise RuntimeError
    assert_same(model.state_dict(), before)


def test_running_statistics_are_averaged_and_counters_copied() -> None:
    model = nn.BatchNorm2d(1).double()
    ema = Ema(model, 1e9)
    seen: list[float] = []
    for step in range(3):
        model(torch.randn(4, 1, 2, 2, dtype=torch.float64) + step)
        assert model.running_mean is not None
        seen.append(model.running_mean.item())
        ema.update(8)
    tensors, rest = ema.state()
    assert tensors["running_mean"].item() == pytest.approx(sum(seen) / 3)
    assert (tensors["num_batches_tracked"].item(), rest) == (3, {"samples": 24})


def test_what_is_done_to_buffers_within_is_done_to_the_average() -> None:
    model = nn.BatchNorm2d(1)
    ema = Ema(model, 100)
    with ema.applied():
        model.get_buffer("running_mean").fill_(5.0)
    assert (model.get_buffer("running_mean").item(), ema.state()[0]["running_mean"].item()) == (0.0, 5.0)


def test_it_goes_on_bit_for_bit_after_a_checkpoint() -> None:
    torch.manual_seed(0)
    model, store = small("batch"), MemoryStore()
    ema = Ema(model, 100)

    def disturb(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator))

    disturb(1)
    ema.update(32)
    tensors, rest = ema.state()
    saved = load(store, "x", save(store, "x", {"ema": tensors}, {"ema": rest}))  # type: ignore[dict-item]
    resumed = Ema(model, 100)
    resumed.restore(saved.files["ema"], saved.state["ema"])  # type: ignore[arg-type]
    disturb(2)
    for average in (ema, resumed):
        average.update(32)
    assert_same(resumed.state()[0], ema.state()[0])
    assert resumed.samples == ema.samples == 64


def test_an_average_of_another_model_is_refused() -> None:
    ema = Ema(point(3.0), 100)
    with pytest.raises(CheckpointError, match="average belongs to another model") as caught:
        ema.restore({"weight": torch.zeros(2, 2), "bias": torch.zeros(1)}, {"samples": 1})
    assert "unexpected: bias" in str(caught.value)
    assert "other shapes: weight" in str(caught.value)
    assert (held(ema), ema.samples) == (3.0, 0)


@pytest.mark.parametrize("horizon", [0, -1.0])
def test_a_span_that_is_none(horizon: float) -> None:
    with pytest.raises(ValueError, match="above zero"):
        Ema(point(), horizon)
