import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl.config import Task, TaskKind
from mtl.errors import ConfigError
from mtl.metrics import delta_m
from mtl.sweep.objective import Objective, objective, primary, shown
from mtl.task_config import BY_SCORE, FURTHER, METRICS
from tests.helpers.jobs import tiny_config
from tests.helpers.specs import labelled

KINDS = {"object": "multiclass", "angle": "circular"}
SINGLE = {"object": 0.8, "angle": 20.0}


def measured(object_: float, angle: float) -> dict[str, dict[str, float]]:
    return {"object": {"accuracy": object_, "loss": 1.0}, "angle": {"error_degrees": angle, "loss": 1.0}}


@pytest.mark.parametrize("kind", METRICS)
def test_the_metrics_of_each_kind_are_those_that_its_task_computes(kind: TaskKind) -> None:
    task, output, label = labelled(Task(kind=kind, label="t"), 9)
    assert set(METRICS[kind]) == {*task.summary(task.tally(output, label)), "loss"}
    assert task.primary == (primary(kind), METRICS[kind][primary(kind)])
    asked = Task(kind=kind, label="t", metrics=tuple(FURTHER[kind]))
    task, output, label = labelled(asked, 9)
    found = {*task.summary(task.tally(output, label))} | ({*BY_SCORE} if task.scores(output, label) else set())
    assert {*METRICS[kind], *asked.further()} == {*found, "loss"}


def test_a_further_metric_can_be_selected_by() -> None:
    task = Task(kind="multiclass", label="object", metrics=("ece",))
    chosen = objective("object/ece", tiny_config("data", "runs", tasks={"object": task}))
    assert chosen.score(0.1) > chosen.score(0.2)


def test_delta_m_counts_a_fall_of_an_error_as_a_gain() -> None:
    better = {"object": True, "angle": False}
    assert delta_m(SINGLE, SINGLE, better) == 0
    assert math.isclose(delta_m({"object": 0.88, "angle": 22.0}, SINGLE, better), 0, abs_tol=1e-12)
    assert math.isclose(delta_m({"object": 0.84, "angle": 18.0}, SINGLE, better), 0.075)


@given(
    st.dictionaries(st.sampled_from("abcd"), st.tuples(st.floats(0.1, 9), st.floats(0.1, 9), st.booleans()), min_size=1)
)
def test_delta_m_is_zero_at_the_baselines_and_grows_with_every_task(tasks: dict) -> None:
    own, single, better = ({name: values[at] for name, values in tasks.items()} for at in range(3))
    assert delta_m(single, single, better) == 0
    first = next(iter(own))
    improved = own | {first: own[first] * (1.5 if better[first] else 0.5)}
    assert delta_m(improved, single, better) > delta_m(own, single, better)


def test_delta_m_is_not_known_before_the_baselines() -> None:
    chosen = Objective("delta_m", KINDS)
    assert chosen.value(measured(0.8, 20), None) is None
    assert chosen.value(measured(0.84, 18), SINGLE) == pytest.approx(0.075)
    assert chosen.larger_is_better


def test_a_metric_of_one_task_needs_no_baseline_and_knows_its_direction() -> None:
    chosen = Objective("angle/error_degrees", KINDS)
    assert chosen.value(measured(0.8, 20), None) == 20
    assert chosen.score(20) < chosen.score(10)
    assert Objective("object/accuracy", KINDS).score(0.1) < Objective("object/accuracy", KINDS).score(0.2)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_worst(value: float) -> None:
    for metric in ("angle/error_degrees", "object/accuracy"):
        assert Objective(metric, KINDS).score(value) == -math.inf


@pytest.mark.parametrize("metric", ["accuracy", "object/mae", "size/accuracy", "val/object/accuracy", ""])
def test_a_metric_that_no_task_produces_is_refused_with_all_there_are(metric: str) -> None:
    with pytest.raises(ConfigError, match="No task produces") as caught:
        objective(metric, tiny_config("data", "runs"))
    assert "object/accuracy" in str(caught.value.expected)


def test_a_baseline_of_zero_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match="baseline of 'object' is zero"):
        Objective("delta_m", KINDS).value(measured(0.8, 20), {"object": 0.0, "angle": 20.0})


def test_values_for_people() -> None:
    assert Objective("delta_m", KINDS).show(-0.0123) == "delta-m -1.2 %"
    assert Objective("delta_m", KINDS).show(None) == "delta-m not known yet"
    assert Objective("angle/error_degrees", KINDS).show(12.34) == "angle/error_degrees 12.3°"
    assert shown("accuracy", 0.5) == "50.0 %"
    assert shown("mae", 0.01234) == "0.0123"
