"""What a task may say of itself: losses, options, metrics of its kind, and nothing else."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl.config import Loss, Task
from mtl.errors import ConfigError
from mtl.task_config import FURTHER, LOSSES, METRICS, ON_TREES, TaskKind
from tests.helpers.jobs import tiny_config

OPTIONS = {
    **dict.fromkeys(("class_weights", "pos_weight"), (1.0, 2.0)),
    **dict.fromkeys(("gamma", "alpha", "beta", "gamma_positive", "gamma_negative", "margin", "delta"), 0.5),
    "balanced": True,
    "args": {"power": 2},
}


def test_every_option_is_tried_here() -> None:
    assert OPTIONS.keys() == Loss.model_fields.keys() - {"name"}


@given(st.sampled_from([*LOSSES]), st.data())
def test_an_option_is_read_or_refused(kind: TaskKind, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([*LOSSES[kind], "module:loss"]))
    option = data.draw(st.sampled_from([*OPTIONS]))
    tree = "tree.csv" if name in ON_TREES else None

    def made() -> Task:
        return Task(kind=kind, label="x", tree=tree, loss=Loss(**{"name": name, option: OPTIONS[option]}))

    if option in LOSSES[kind].get(name, ("args",)):
        assert made().loss.given() == [option]
    else:
        with pytest.raises(ConfigError, match="no such option"):
            made()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Task(kind="ordinal", label="x", loss=Loss(name="focal")), "can not have this loss"),
        (lambda: Task(kind="multiclass", label="x", loss=Loss(name="hierarchical")), "needs a tree"),
        (lambda: Task(kind="multiclass", label="x", label_smoothing=0.1, loss=Loss(name="focal")), "label_smoothing"),
        (lambda: Task(kind="multiclass", label="x", loss=Loss(balanced=True, class_weights=(1, 2))), "weights twice"),
        (lambda: Task(kind="binary", label="x", loss=Loss(name="focal", alpha=2)), "another range"),
        (lambda: Task(kind="binary", label="x", tree="a.csv"), "tree does not fit"),
        (lambda: Task(kind="binary", label="x", group_of="y"), "group_of does not fit"),
        (lambda: Task(kind="regression", label="x", flip_components=(0,)), "flip_components does not fit"),
        (lambda: Task(kind="binary", label="x", metrics=("top5",)), "can not have these metrics"),
        (lambda: Task(kind="ordinal", label="x", metrics=("each",)), "can not have these metrics"),
    ],
)
def test_what_does_not_fit_is_refused(make: Callable[[], Task], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        make()
    assert all(part is not None for part in (caught.value.got, caught.value.expected, caught.value.do))


@pytest.mark.parametrize("of", ["fine", "nobody", "yes"])
def test_groups_are_of_another_multiclass_task(of: str) -> None:
    tasks = {"fine": Task(kind="multiclass", label="f", group_of=of), "yes": Task(kind="binary", label="y")}
    with pytest.raises(ConfigError, match="group_of"):
        tiny_config("data", "runs", tasks=tasks)


def test_tables_know_the_same_kinds() -> None:
    assert LOSSES.keys() == METRICS.keys() == FURTHER.keys()
    assert not any(METRICS[kind].keys() & FURTHER[kind].keys() for kind in METRICS)


def test_columns() -> None:
    assert Task(kind="multilabel", label="a, b,c").columns == ("a", "b", "c")
    assert Task(kind="multilabel", label="a, b,c").class_count == 3
    assert Task(kind="regression", label="a, b").columns == ("a, b",)
