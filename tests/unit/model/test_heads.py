"""Heads: one for each task, alike whether they are computed together or one by one."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mtl.errors import ConfigError
from mtl.model.heads import Heads, HeadSpec, attend

EXACT: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}
OUTPUTS = {"object": 3, "kind": 1, "angle": 2}


def made(hidden: int = 0, dropout: float = 0.0, attention: bool = False, width: int = 5) -> Heads:
    torch.manual_seed(0)
    heads = HeadSpec(OUTPUTS, hidden, dropout, attention).build(width).double()
    with torch.no_grad():
        for name, parameter in heads.named_parameters():
            if name.endswith("query"):
                parameter.normal_()
    return heads


def inputs(attention: bool, n: int = 4) -> torch.Tensor:
    return torch.randn(n, 5, *((3, 2) if attention else ()), dtype=torch.float64)


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("hidden", [0, 7])
def test_together_and_one_by_one_are_the_same(hidden: int, attention: bool) -> None:
    heads, x = made(hidden, attention=attention), inputs(attention)
    together = heads(x)
    assert {task: tuple(output.shape) for task, output in together.items()} == {t: (4, w) for t, w in OUTPUTS.items()}
    alone = {task: heads.one(task, x) for task in OUTPUTS}
    parameters = list(heads.parameters())
    for task in OUTPUTS:
        torch.testing.assert_close(together[task], alone[task], **EXACT)
        pair = [
            torch.autograd.grad(o[task].square().sum(), parameters, retain_graph=True, allow_unused=True)
            for o in (together, alone)
        ]
        for a, b in zip(*pair, strict=True):
            # Computed together, a task that is not asked gets zeros in place of nothing.
            nothing = torch.zeros((), dtype=torch.float64)
            a, b = (nothing if g is None else g for g in (a, b))
            torch.testing.assert_close(*torch.broadcast_tensors(a, b), **EXACT)


@pytest.mark.parametrize("attention", [False, True])
def test_each_task_drops_units_of_its_own(attention: bool) -> None:
    heads, x = made(dropout=0.5, attention=attention), inputs(attention)
    torch.manual_seed(1)
    together = heads(x)
    torch.manual_seed(1)
    for task in OUTPUTS:
        torch.testing.assert_close(together[task], heads.one(task, x), **EXACT)
    heads.eval()
    assert all(heads(x)[task].equal(heads(x)[task]) for task in OUTPUTS)


@settings(max_examples=20)
@given(n=st.integers(1, 3), c=st.integers(1, 4), h=st.integers(1, 3), w=st.integers(1, 3), k=st.integers(1, 3))
def test_attention_is_a_mean_with_the_softmax_of_scores_as_weights(n: int, c: int, h: int, w: int, k: int) -> None:
    maps, queries = torch.randn(n, c, h, w, dtype=torch.float64), torch.randn(k, c, dtype=torch.float64)
    got = attend(maps, queries)
    for sample in range(n):
        for task in range(k):
            positions = maps[sample].reshape(c, -1)
            weights = (queries[task] @ positions / c**0.5).exp()
            torch.testing.assert_close(got[sample, task], positions @ weights / weights.sum(), **EXACT)


def test_attention_begins_as_mean_pooling() -> None:
    maps = torch.randn(2, 5, 3, 3)
    torch.testing.assert_close(attend(maps, torch.zeros(1, 5))[:, 0], maps.mean((2, 3)))


@pytest.mark.parametrize("attention", [False, True])
def test_names_and_values_of_one_head_do_not_depend_on_the_others(attention: bool) -> None:
    few, many = (HeadSpec(outputs, 4, 0.0, attention).build(5) for outputs in ({"kind": 1}, OUTPUTS))
    own = {name for name in many.state_dict() if name.startswith("kind.")}
    assert own == set(few.state_dict())
    dropped = HeadSpec(OUTPUTS, 4, 0.5, attention).build(5)
    assert set(dropped.state_dict()) == set(many.state_dict())


@pytest.mark.parametrize("name", ["type", "keys", "forward", "training"])
def test_names_that_torch_uses_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"can not be named '{name}'"):
        HeadSpec({name: 1}).build(5)


def test_dropout_is_seen_as_such() -> None:
    assert any(isinstance(m, nn.Dropout) and m.p == 0.5 for m in made(dropout=0.5).modules())
