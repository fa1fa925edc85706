from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from mtl.checkpoint import load, restore_model, save
from mtl.errors import CheckpointError
from mtl.optimizer_state import optimizer_tensors, restore_optimizer
from tests.helpers.memory_store import MemoryStore
from tests.helpers.tensors import assert_same, small_model

OPTIMIZERS: dict[str, Callable[[list[dict[str, object]]], Optimizer]] = {
    "sgd": lambda groups: SGD(groups, lr=0.1),
    "momentum": lambda groups: SGD(groups, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda groups: Adam(groups, lr=1e-3, betas=(0.85, 0.995), amsgrad=True),
    "adamw": lambda groups: AdamW(groups, lr=1e-3, foreach=False),
    "fused": lambda groups: AdamW(groups, lr=1e-3, fused=True),
    "fused momentum": lambda groups: SGD(groups, lr=0.1, momentum=0.9, nesterov=True, fused=True),
}


def make(kind: str, seed: int = 0, reverse: bool = False) -> tuple[nn.Sequential, Optimizer, dict[nn.Parameter, str]]:
    net = small_model(seed)
    decayed = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    if reverse:
        decayed, others = decayed[::-1], others[::-1]
    groups: list[dict[str, object]] = [
        {"params": decayed, "weight_decay": 0.1},
        {"params": others, "weight_decay": 0.0},
    ]
    return net, OPTIMIZERS[kind](groups), {p: name for name, p in net.named_parameters()}


def take_steps(net: nn.Module, optimizer: Optimizer, seed: int, steps: int = 3) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(5, 3, 4, 4, generator=generator)).square().sum().backward()
        optimizer.step()


def through_storage(
    optimizer: Optimizer, names: dict[nn.Parameter, str]
) -> tuple[dict[str, Tensor], dict[str, object]]:
    store = MemoryStore()
    tensors, state = optimizer_tensors(optimizer, names)
    loaded = load(store, "x", save(store, "x", {"optimizer": tensors}, state))
    return loaded.files["optimizer"], loaded.state  # type: ignore[return-value]


@pytest.mark.parametrize("reverse", [False, True], ids=["same order", "other order"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_optimizer_goes_on_bit_for_bit(kind: str, reverse: bool) -> None:
    net, optimizer, names = make(kind)
    take_steps(net, optimizer, seed=1)
    optimizer.param_groups[0]["lr"] = 0.1 / 3
    tensors, state = through_storage(optimizer, names)
    weights = {name: tensor.clone() for name, tensor in net.state_dict().items()}

    other, resumed, other_names = make(kind, seed=7, reverse=reverse)
    take_steps(other, resumed, seed=3)
    restore_model(other, weights)
    restore_optimizer(resumed, other_names, tensors, state)  # type: ignore[arg-type]
    assert resumed.param_groups[0]["lr"] == 0.1 / 3
    assert_same(optimizer_tensors(resumed, other_names)[0], optimizer_tensors(optimizer, names)[0])

    take_steps(net, optimizer, seed=2)
    take_steps(other, resumed, seed=2)
    assert_same(other.state_dict(), net.state_dict())
    assert_same(optimizer_tensors(resumed, other_names)[0], optimizer_tensors(optimizer, names)[0])


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_restored_state_is_torchs_own(kind: str) -> None:
    net, optimizer, names = make(kind)
    take_steps(net, optimizer, seed=1)
    _, resumed, other_names = make(kind, seed=7)
    restore_optimizer(resumed, other_names, *through_storage(optimizer, names))  # type: ignore[arg-type]
    got, expected = resumed.state_dict(), optimizer.state_dict()
    assert got["param_groups"] == expected["param_groups"]
    for index, state in expected["state"].items():
        if any(value is not None for value in state.values()):
            assert_same(got["state"][index], state)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_fresh_optimizer_has_no_state_and_restores_to_none(kind: str) -> None:
    _, optimizer, names = make(kind)
    tensors, state = through_storage(optimizer, names)
    assert tensors == {}
    net, used, used_names = make(kind)
    take_steps(net, used, seed=1)
    restore_optimizer(used, used_names, tensors, state)  # type: ignore[arg-type]
    assert not used.state


def test_restored_state_is_a_copy_with_the_parameters_strides() -> None:
    net, optimizer, names = make("adam")
    take_steps(net, optimizer, seed=1)
    tensors, state = optimizer_tensors(optimizer, names)
    other = small_model().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    groups = [{"params": [p for p in other.parameters() if (p.ndim > 1) is flag]} for flag in (True, False)]
    resumed = Adam(groups, amsgrad=True)
    restore_optimizer(resumed, {p: name for name, p in other.named_parameters()}, tensors, state)
    kernel = other[0].weight
    assert isinstance(kernel, Tensor)
    moment = resumed.state[kernel]["exp_avg"]
    assert moment.stride() == kernel.stride() != tensors["0.weight/exp_avg"].stride()
    before = tensors["0.weight/exp_avg"].clone()
    moment.zero_()
    assert tensors["0.weight/exp_avg"].equal(before)


def test_other_parameters_are_refused_by_name() -> None:
    _, optimizer, names = make("adam")
    tensors, state = optimizer_tensors(optimizer, names)
    wide = nn.ModuleDict({f"head{i}": nn.Linear(1, 1) for i in range(4)})
    other = Adam(wide.parameters())
    with pytest.raises(CheckpointError) as caught:
        restore_optimizer(other, {p: name for name, p in wide.named_parameters()}, tensors, state)
    text = str(caught.value)
    assert "missing: head0.bias, head0.weight, head1.bias, head1.weight, head2.bias and 3 more" in text
    assert "unexpected: 0.bias, 0.weight, 1.bias, 1.weight, 3.bias and 1 more" in text


def test_another_optimizer_and_other_groups_are_refused() -> None:
    net, optimizer, names = make("adam")
    tensors, state = optimizer_tensors(optimizer, names)
    with pytest.raises(CheckpointError, match="another optimizer"):
        restore_optimizer(AdamW(net.parameters()), names, tensors, state)
    with pytest.raises(CheckpointError, match="groups its parameters differently"):
        restore_optimizer(Adam(net.parameters()), names, tensors, state)


def test_a_value_that_is_not_plain_is_refused() -> None:
    net = small_model()
    optimizer = Adam(net.parameters(), lr=torch.tensor(0.1), capturable=False, foreach=False)
    with pytest.raises(CheckpointError, match="'lr' can not be saved"):
        optimizer_tensors(optimizer, {p: name for name, p in net.named_parameters()})
