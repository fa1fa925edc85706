"""The best evaluation so far, and when it is enough."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl.selection import Selection


def tell(made: Selection, value: float) -> bool:
    return made.tell({"a": {"loss": value, "other": 0.0}})


@settings(max_examples=30)
@given(st.lists(st.floats(-1e6, 1e6) | st.just(math.nan), max_size=20), st.booleans(), st.integers(1, 5))
def test_it_is_the_first_of_the_best(values: list[float], larger: bool, patience: int) -> None:
    made, finite = Selection("a/loss", larger=larger, patience=patience), list[float]()
    since = 0
    for value in values:
        better = math.isfinite(value) and all((value > old) if larger else (value < old) for old in finite)
        finite += [value] if math.isfinite(value) else []
        since = 0 if better else since + 1
        assert tell(made, value) == better
        assert made.enough == (since >= patience)
        copy = Selection("a/loss", larger=larger, patience=patience)
        copy.restore(made.state())
        assert (copy.best, copy.enough) == (made.best, made.enough)


def test_without_a_metric_nothing_is_best_and_it_is_never_enough() -> None:
    made = Selection(None, larger=True, patience=None)
    assert not made.tell({})
    assert not made.enough


def test_images_of_another_size_begin_anew() -> None:
    made = Selection("a/loss", larger=False, patience=1, view="176 of 200 px")
    tell(made, 0.5)
    same, other = (Selection("a/loss", larger=False, patience=1, view=f"{px} of 200 px") for px in (176, 200))
    same.restore(made.state())
    other.restore(made.state())
    assert (same.best, other.best) == (0.5, None)
    older = {name: value for name, value in made.state().items() if name != "view"}  # saved before views were
    other.restore(older)
    assert other.best == 0.5


@pytest.mark.parametrize("metric", [None, "a/other"])
def test_another_metric_begins_anew(metric: str | None) -> None:
    made = Selection("a/loss", larger=False, patience=1)
    tell(made, 1.0)
    other = Selection(metric, larger=False, patience=None)
    other.restore(made.state())
    assert other.best is None
