"""Batch norm in fixed groups equals batch norm of separate batches, and leaves the average of their statistics."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mtl.errors import ConfigError
from mtl.model.batchnorm import GroupBatchNorm, apply_policy, freeze, has_batch_norm
from tests.helpers.backbones import one_dimensional, small

EXACT: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}


def pair(group_size: int, momentum: float = 0.1) -> tuple[nn.Module, nn.BatchNorm2d]:
    """A layer in groups, and a plain one of the same parameters and statistics."""
    torch.manual_seed(0)
    plain = nn.BatchNorm2d(3, momentum=momentum).double()
    with torch.no_grad():
        for tensor in (plain.weight, plain.bias, plain.running_mean):
            assert tensor is not None
            tensor.normal_()
    grouped = nn.Sequential(nn.BatchNorm2d(3, momentum=momentum).double())
    grouped[0].load_state_dict(plain.state_dict())
    apply_policy(grouped, "groups", group_size)
    assert isinstance(grouped[0], GroupBatchNorm)
    return grouped[0], plain


@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(2, 5), st.floats(0.01, 1.0))
def test_groups_equal_separate_batches(groups: int, size: int, momentum: float) -> None:
    grouped, plain = pair(size, momentum)
    separate = [copy.deepcopy(plain) for _ in range(groups)]
    x = torch.randn(groups * size, 3, 4, 4, dtype=torch.float64).requires_grad_()
    upstream = torch.randn_like(x)
    got, expected = grouped(x), torch.cat([layer(part) for layer, part in zip(separate, x.split(size), strict=True)])
    torch.testing.assert_close(got, expected, **EXACT)
    torch.testing.assert_close(
        *(torch.autograd.grad(y, x, upstream, retain_graph=True) for y in (got, expected)), **EXACT
    )
    for y in (got, expected):
        y.backward(upstream)
    for name, parameter in grouped.named_parameters():
        grads = [layer.get_parameter(name).grad for layer in separate]
        torch.testing.assert_close(parameter.grad, torch.stack([g for g in grads if g is not None]).sum(0), **EXACT)
    for name in ("running_mean", "running_var"):
        mean = torch.stack([layer.get_buffer(name) for layer in separate]).mean(0)
        torch.testing.assert_close(grouped.get_buffer(name), mean, **EXACT)
    assert grouped.get_buffer("num_batches_tracked") == 1


@pytest.mark.parametrize("policy", ["local", "frozen"])
def test_other_policies_keep_the_layers(policy: str) -> None:
    model = apply_policy(small("batch"), policy, 4)  # type: ignore[arg-type]
    assert {type(m) for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {nn.BatchNorm2d}


def test_synchronised_layers() -> None:
    model = apply_policy(small("batch"), "sync", 4)
    assert any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())


def test_group_norm_is_untouched() -> None:
    model = small("group")
    assert not has_batch_norm(model)
    assert apply_policy(model, "groups", 4) is model
    assert has_batch_norm(small("batch"))


@pytest.mark.parametrize(
    "layer",
    [
        one_dimensional(),
        nn.BatchNorm3d(3),
        nn.SyncBatchNorm(3),
        nn.BatchNorm2d(3, track_running_stats=False),
        nn.BatchNorm2d(3, momentum=None),
    ],
    ids=["1d", "3d", "sync", "without running averages", "cumulative"],
)
def test_layers_that_groups_can_not_serve(layer: nn.Module) -> None:
    with pytest.raises(ConfigError, match="can not be normalised in groups"):
        apply_policy(nn.Sequential(layer), "groups", 4)


def test_frozen_layers_keep_their_statistics_while_the_rest_trains() -> None:
    model = small("batch").train()
    freeze(model)
    before = [buffer.clone() for buffer in model.buffers()]
    model(torch.randn(4, 3, 16, 16)).sum().backward()
    assert all(now.equal(then) for now, then in zip(model.buffers(), before, strict=True))
    assert all(module.training != isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert all(p.grad is not None for p in model.parameters())
