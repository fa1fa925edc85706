"""One backbone and its heads: what is shared is said, never guessed."""

import pytest
import torch
from torch import nn

from mtl.model import MultiTaskModel

OUTPUTS = {"object": 3, "kind": 1, "angle": 2}


def model(hidden: int = 0, dropout: float = 0.0) -> MultiTaskModel:
    return MultiTaskModel(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), 5, OUTPUTS, hidden, dropout)


@pytest.mark.parametrize("hidden", [0, 7])
def test_an_output_for_each_task(hidden: int) -> None:
    outputs = model(hidden)(torch.zeros(4, 3, 2, 2))
    assert {name: tuple(output.shape) for name, output in outputs.items()} == {
        "object": (4, 3),
        "kind": (4, 1),
        "angle": (4, 2),
    }


@pytest.mark.parametrize("hidden", [0, 7])
def test_shared_and_task_parameters_are_all_there_are(hidden: int) -> None:
    net = model(hidden)
    parts = [net.shared_parameters(), *(net.task_parameters(task) for task in OUTPUTS)]
    ids = [id(p) for part in parts for p in part]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(p) for p in net.parameters()}


@pytest.mark.parametrize("task", OUTPUTS)
def test_a_loss_of_one_task_trains_that_head_and_the_backbone(task: str) -> None:
    net = model(hidden=7)
    net(torch.ones(4, 3, 2, 2))[task].sum().backward()
    trained = {id(p) for p in net.parameters() if p.grad is not None}
    assert trained == {id(p) for p in [*net.shared_parameters(), *net.task_parameters(task)]}


def test_dropout_is_before_each_head() -> None:
    net = model(dropout=0.5)
    assert all(isinstance(head[0], nn.Dropout) for head in net.heads.values())  # type: ignore[index]
    images = torch.ones(4, 3, 2, 2)
    net.eval()
    assert net(images)["object"].equal(net(images)["object"])
    net.train()
    assert not net(images)["object"].equal(net(images)["object"])
