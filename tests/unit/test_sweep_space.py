import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl import recipes
from mtl.config import Config
from mtl.data.keyed import uniforms
from mtl.errors import ConfigError
from mtl.sweep.settings import Range, Sweep, load
from mtl.sweep.space import Space, applied, search_space

SHAPES = recipes.get("shapes")
WEIGHTS = tuple(f"tasks.{task}.weight" for task in SHAPES.tasks)


def cube(axes: int) -> st.SearchStrategy[list[float]]:
    return st.lists(st.floats(0, 1, exclude_max=True), min_size=axes, max_size=axes)


def shares_of(tasks: int) -> Space:
    return Space({}, tuple(f"tasks.t{number}.weight" for number in range(tasks)))


def test_the_configuration_declares_its_learning_rate_and_the_weights_of_its_tasks() -> None:
    space = search_space(SHAPES, {})
    assert space.ranges == {"optimizer.lr": Range(low=4e-4, high=4e-2, scale="log")}
    assert space.shares == WEIGHTS
    assert len(space.axes) == 1 + len(WEIGHTS) - 1


@given(st.integers(2, 8).flatmap(lambda tasks: st.tuples(st.just(tasks), cube(tasks - 1))))
def test_shares_are_a_point_of_the_simplex_and_lead_back_to_their_point(case: tuple[int, list[float]]) -> None:
    tasks, point = case
    space = shares_of(tasks)
    values = space.values(point)
    assert math.isclose(sum(values.values()), tasks, rel_tol=1e-3)
    assert all(value >= 0 for value in values.values())
    back = space.point(values)
    assert back is not None
    again = space.values(back)
    assert all(math.isclose(again[name], values[name], rel_tol=2e-2, abs_tol=2e-2) for name in values)


@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_uniform_points_are_uniform_on_the_simplex(tasks: int) -> None:
    space = shares_of(tasks)
    points = uniforms(3, np.arange(4_000), tasks - 1).tolist()
    drawn = np.array([list(space.values(point).values()) for point in points]) / tasks
    # Of a flat Dirichlet distribution: mean 1/K, variance (K-1)/(K^2 (K+1)), the same for every task.
    assert np.allclose(drawn.mean(0), 1 / tasks, atol=0.015)
    assert np.allclose(drawn.var(0), (tasks - 1) / (tasks**2 * (tasks + 1)), atol=0.006)


@given(cube(5))
def test_every_point_gives_a_configuration_and_says_it_exactly(point: list[float]) -> None:
    space = search_space(SHAPES, {})
    values = space.values(point)
    config = applied(SHAPES, values)
    assert config.optimizer.lr == values["optimizer.lr"]
    assert {f"tasks.{name}.weight": task.weight for name, task in config.tasks.items()} == {
        name: values[name] for name in WEIGHTS
    }
    assert all(float(f"{value:g}") == value for value in values.values())


def test_ranges_are_even_on_their_scale_and_whole_where_the_field_is() -> None:
    space = search_space(
        SHAPES,
        {
            "optimizer.lr": Range(low=1e-4, high=1e-2, scale="log"),
            "augment.brightness": Range(low=0, high=0.4),
            "model.head_hidden": Range(low=0, high=64),
            **dict.fromkeys(WEIGHTS),
        },
    )
    assert space.axes == ("optimizer.lr", "augment.brightness", "model.head_hidden")
    values = space.values([0.5, 0.25, 0.49])
    assert values == {"optimizer.lr": 1e-3, "augment.brightness": 0.1, "model.head_hidden": 31}
    assert applied(SHAPES, values).model.head_hidden == 31


def test_a_weight_that_is_left_alone_keeps_its_value_and_one_of_zero_is_no_share() -> None:
    config = applied(SHAPES, {"tasks.touching.weight": 0.0})
    space = search_space(config, {"tasks.shape.weight": None})
    assert space.shares == tuple(f"tasks.{task}.weight" for task in ("colour", "count", "rotation"))
    assert "tasks.shape.weight" not in space.values([0.5] * len(space.axes))


def test_a_point_outside_has_no_place() -> None:
    space = search_space(SHAPES, {})
    inside = dict.fromkeys(WEIGHTS, 1.0) | {"optimizer.lr": 4e-3}
    assert space.point(inside) is not None
    assert space.point(inside | {"optimizer.lr": 1.0}) is None
    assert space.point(inside | {"tasks.shape.weight": 3.0}) is None


@pytest.mark.parametrize(
    ("config", "overrides", "message"),
    [
        (SHAPES, {"optimizer.rate": Range(low=0, high=1)}, "names 'optimizer.rate'"),
        (SHAPES, {"optimizer.name": Range(low=0, high=1)}, "no field that holds a number"),
        (SHAPES, {"model.dropout": Range(low=0, high=1.5)}, "dropout"),
        (SHAPES, {"augment.crop_pad_px": Range(low=0, high=8)}, "crop_pad_px would have no effect"),
        (SHAPES, dict.fromkeys((*WEIGHTS, "optimizer.lr")), "nothing to search"),
        (SHAPES, {"tasks.size.weight": "simplex"}, "names 'tasks.size.weight'"),
    ],
)
def test_a_space_that_can_not_be_searched_is_refused(config: Config, overrides: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        search_space(config, overrides)
    assert message in str(caught.value)


def test_a_sweep_file(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "trials: 8\nmetric: shape/accuracy\nspace:\n  optimizer.lr: {low: 1.0e-4, high: 0.01, scale: log}\n"
        "  tasks.count.weight: null\n  tasks.shape.weight: simplex\n"
    )
    sweep = load(path)
    assert sweep == Sweep.model_validate(
        {
            "trials": 8,
            "metric": "shape/accuracy",
            "space": {
                "optimizer.lr": Range(low=1e-4, high=0.01, scale="log"),
                "tasks.count.weight": None,
                "tasks.shape.weight": "simplex",
            },
        }
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trails: 8", "did you mean trials?"),
        ("trials: 0", "greater than or equal to 1"),
        ("space: {a: {low: 2, high: 1}}", "low < high"),
        ("space: {a: {low: 0, high: 1, scale: log}}", "low > 0"),
        ("space: {a: simplx}", "simplx"),
        ("trials: [", "can not be read"),
        (None, "can not be read"),
    ],
)
def test_a_bad_sweep_file_is_one_clear_error(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "sweep.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert message in str(caught.value)
    assert "sweep.yaml" in str(caught.value)
