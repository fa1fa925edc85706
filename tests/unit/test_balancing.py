"""The registry of methods, and what each of them must do."""

import json

import pytest
import torch

from mtl.balancing import METHODS, Balancer, Static, TaskStats

STATS = TaskStats(torch.tensor([4.0, 0.0, 7.0], dtype=torch.float64), step=3)


def test_static_weights_are_those_it_was_given() -> None:
    balancer: Balancer = Static([1.0, 0.5, 0.0])
    weights = balancer.weights(STATS)
    assert weights.dtype == torch.float32
    assert weights.tolist() == [1.0, 0.5, 0.0]


@pytest.mark.parametrize("name", METHODS)
def test_state_is_json_and_all_there_is(name: str) -> None:
    balancer, again = (METHODS[name]([1.0, 2.0, 3.0]) for _ in range(2))  # type: ignore[call-arg]
    again.load_state_dict(json.loads(json.dumps(balancer.state_dict())))
    assert again.weights(STATS).equal(balancer.weights(STATS))
