"""Methods of a user's own, through module:Class: that of docs/balancing.md, and one that can not bear a NaN."""

import re
from pathlib import Path
from typing import Any, final

import numpy as np
import pytest
import torch
from torch import Tensor

from mtl.balancing import METHODS
from mtl.balancing.base import Needs, Stateless, TaskStats
from mtl.balancing.build import build_balancer
from mtl.balancing.signals import Ranks, Weigher
from mtl.loop import train_step
from tests.helpers.batches import CPU, batch, counts, trainee
from tests.helpers.grams import jacobian, stats

PAGE = (Path(__file__).parents[3] / "docs" / "balancing.md").read_text()


@pytest.fixture
def damped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of the page's example."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    (tmp_path / "damped.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    return "damped:Damped"


def test_the_example_balances(damped: str) -> None:
    rows = jacobian("scales", 3, 0)
    weights = build_balancer(damped, 3, 0, {"power": 1.0}).weights(stats(rows @ rows.T))
    lengths = weights * rows.norm(dim=1)
    assert lengths.tolist() == pytest.approx([lengths[0].item()] * 3)


@pytest.mark.parametrize("backend", ["boundary", "exact"])
def test_the_example_trains(damped: str, backend: str) -> None:
    made = trainee(method=damped, backend=backend, arguments={"power": 0.7})
    one = batch(8)
    assert train_step(made, one, counts(one), CPU) is not None
    assert made.weigher.known.sum().item() == pytest.approx(4)


def test_the_page_lists_every_method() -> None:
    listed = set(re.findall(r"^\| `([a-z-]+)` \|", PAGE, re.MULTILINE)) - {"scalar", "boundary", "exact"}
    assert listed == set(METHODS)


@final
class Strict(Stateless):
    """Looks at everything, and raises on what is not finite, as torch.linalg does."""

    needs = Needs.GRAM | Needs.LOSSES | Needs.POST_STEP_LOSSES

    def __init__(self, tasks: int, seed: int) -> None:
        self.asked = 0

    def weights(self, stats: TaskStats) -> Tensor:
        assert stats.losses is not None
        assert stats.gram is not None
        assert bool(stats.losses.isfinite().all() & stats.gram.isfinite().all())
        self.asked += 1
        return stats.losses.new_full((len(stats.losses),), 2.0)


STRICT = "tests.unit.balancing.test_balancing_own:Strict"


@pytest.mark.parametrize("how", [{"backend": "boundary"}, {"backend": "boundary", "lag": True}, {"backend": "exact"}])
def test_a_method_is_never_asked_about_what_is_not_finite(how: dict[str, Any]) -> None:
    made, bad = trainee(method=STRICT, **how), batch(8)
    bad.colour[3] = np.nan
    assert train_step(made, bad, counts(bad), CPU) is None
    assert made.weigher.known.tolist() == [1] * 4
    good = batch(8, seed=1)
    assert train_step(made, good, counts(good), CPU) is not None
    assert made.weigher.known.tolist() == [2] * 4


def test_losses_that_a_step_has_blown_up_teach_that_nothing_was_gained() -> None:
    ones = torch.ones(2, dtype=torch.float64)
    one = TaskStats(ones, 0, losses=ones)
    states: list[Any] = []
    for after in ([0.5, 1.0], [0.5, torch.inf], [0.5, torch.nan]):
        weigher = Weigher(build_balancer("famo", 2, 0), [1.0, 1.0], ("binary",) * 2, Ranks(1, CPU))
        weigher.ask(one)
        weigher.learn(one, torch.tensor(after, dtype=torch.float64))
        states.append(weigher.state_dict())
    assert states[0] == states[1] == states[2]
