"""An evaluation over any number of workers gives what one gives, scores included."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torchmetrics.functional import classification as oracle

from mtl.config import Task
from mtl.runtime import LocalRuntime
from mtl.tally import Tally
from mtl.tasks import TaskSpec, build
from tests.helpers.ranks import Group, values
from tests.helpers.specs import hidden

ROWS, CLASSES = 30, ("a", "b", "c", "d")


def specs() -> list[TaskSpec]:
    fine = Task(kind="multiclass", label="fine", metrics=("auroc", "map", "each"))
    group = Task(kind="multiclass", label="coarse", group_of="fine")
    seen = Task(kind="multilabel", label="seen", metrics=("auroc", "map"))
    known: dict[str, Any] = {"low": 0, "high": 1}
    return [
        build("fine", fine, classes=CLASSES, **known),
        build("coarse", group, classes=("x", "y"), groups=(0, 0, 1, -1), **known),
        build("seen", seen, classes=("p", "q"), **known),
        build("yes", Task(kind="binary", label="yes", metrics=("auroc",)), classes=None, **known),
    ]


def everything() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Outputs and labels; all labels of `yes` and every third other one are missing in the first ten rows."""
    draws = torch.Generator().manual_seed(0)
    made = specs()
    outputs = {s.name: torch.randn(ROWS, s.outputs, generator=draws, dtype=torch.float64) for s in made}
    tops = {"fine": 4, "coarse": 2, "seen": 2, "yes": 2}
    labels: dict[str, torch.Tensor] = {}
    for s in made:
        shape = (ROWS, s.width) if s.width else (ROWS,)
        label = torch.randint(tops[s.name], shape, generator=draws)
        lost = torch.arange(ROWS) < 10
        keep = ~lost if s.name == "yes" else ~(lost & (torch.arange(ROWS) % 3 == 0))
        labels[s.name] = hidden(s, label, keep)
    return outputs, labels


def part(rank: int, world_size: int) -> slice:
    """Uneven: the first of several ranks has ten rows, and none with a label of `yes`."""
    return slice(0, ROWS) if world_size == 1 else slice(0, 10) if rank == 0 else slice(10, ROWS)


def measure() -> dict[str, dict[str, float]]:
    with LocalRuntime(gpu=False, threads=1, listen=lambda _: None) as runtime:
        outputs, labels = everything()
        mine, tally = part(runtime.rank, runtime.world_size), Tally(specs())
        for half in (slice(0, 5), slice(5, None)):
            batch, wanted = ({k: v[mine][half] for k, v in x.items()} for x in (outputs, labels))
            tally.add(batch, wanted, torch.ones(len(batch["fine"]), dtype=torch.bool))
        return tally.metrics(runtime)


def test_two_ranks_measure_what_one_measures(tmp_path: Path) -> None:
    (alone,) = values(Group(tmp_path / "one", 1, measure).wait())
    first, second = values(Group(tmp_path / "two", 2, measure).wait())
    assert first == second
    for task, metrics in alone.items():
        assert first[task] == pytest.approx(metrics, rel=1e-12), task
    outputs, labels = everything()
    known = labels["fine"] >= 0
    scores, label = outputs["fine"][known].softmax(1), labels["fine"][known]
    assert alone["fine"]["auroc"] == pytest.approx(float(oracle.multiclass_auroc(scores, label, 4)), abs=1e-6)
    assert alone["fine"]["map"] == pytest.approx(float(oracle.multiclass_average_precision(scores, label, 4)), abs=1e-6)
    assert alone["seen"]["labels"] == int((labels["seen"] >= 0).any(1).sum())
    groups = torch.tensor([0, 0, 1, -1])[outputs["fine"].argmax(1)]
    agree = (groups == outputs["coarse"].argmax(1))[groups >= 0]
    assert alone["coarse"]["consistency"] == pytest.approx(float(agree.double().mean()))
