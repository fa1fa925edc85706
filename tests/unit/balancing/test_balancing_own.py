"""The method of a user's own in docs/balancing.md works as it is written, through module:Class."""

import re
from pathlib import Path

import pytest

from mtl.balancing import METHODS
from mtl.balancing.build import build_balancer
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
