"""From a configuration to the parts of a job."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mtl.config import Augment, Model, Order
from mtl.data.manifest import Manifest
from mtl.errors import ConfigError
from mtl.parts import average_buffers, build_model, build_specs, micro_batch, rank_invariant, targets
from mtl.runtime import LocalRuntime
from mtl.store import open_store
from mtl.tasks import TaskSpec
from tests.helpers.backbones import small
from tests.helpers.datasets import tiny
from tests.helpers.engine import BATCH_NORM, GROUP_NORM, SMALL, tiny_config
from tests.helpers.ranks import Group, values

FROZEN = BATCH_NORM.model_copy(update={"batch_norm": "frozen", "batch_norm_groups": 2})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    tiny(folder / "data")
    return folder / "data"


@pytest.fixture
def specs(data: Path) -> list[TaskSpec]:
    return build_specs(tiny_config(data, data), Manifest.load(open_store(str(data))))


def test_a_task_for_each_of_the_configuration(data: Path, specs: list[TaskSpec]) -> None:
    assert [(spec.name, spec.outputs) for spec in specs] == [("object", 3), ("kind", 1), ("angle", 2), ("amount", 1)]
    made = targets(tiny_config(data, data), specs)
    assert [(target.integer, target.negated_by_flip) for target in made] == [
        (True, "no"),
        (True, "no"),
        (False, "angle"),
        (False, "number"),
    ]


def test_initial_weights_depend_on_the_seed_alone(data: Path, specs: list[TaskSpec]) -> None:
    torch.manual_seed(5)
    first = build_model(tiny_config(data, data), specs)
    torch.manual_seed(6)
    same = build_model(tiny_config(data, data, epochs=7, name="other"), specs)
    other = build_model(tiny_config(data, data, seed=1), specs)
    pairs = [(name, a, same.get_parameter(name), other.get_parameter(name)) for name, a in first.named_parameters()]
    assert all(a.equal(b) for _, a, b, _ in pairs)
    assert all(not a.equal(c) for _, a, _, c in pairs if a.ndim > 1)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (GROUP_NORM, None),
        (BATCH_NORM, None),
        (FROZEN, None),
        (FROZEN.model_copy(update={"batch_norm": "local"}), "batch_norm=local"),
        (SMALL.model_copy(update={"dropout": 0.1}), "dropout"),
        (Model(backbone="mobilenet_v2", batch_norm="frozen"), "dropout"),
        (Model(backbone="convnext_tiny", batch_norm="local"), "dropout"),
    ],
)
def test_what_depends_on_the_number_of_workers_is_said(
    data: Path, specs: list[TaskSpec], model: Model, reason: str | None
) -> None:
    view = Augment(size_px=32, eval_resize_px=32)
    config = tiny_config(data, data, model=model, augment=view, global_batch=64)
    said = rank_invariant(config, build_model(config, specs))
    assert said is None if reason is None else said is not None and reason in said


def test_an_incomplete_batch_does_not_go_with_batch_norm(data: Path, specs: list[TaskSpec]) -> None:
    kept = Order(lanes=8, keep_tail=True)
    for model in (GROUP_NORM, FROZEN):
        build_model(tiny_config(data, data, model=model, global_batch=64, order=kept), specs)
    with pytest.raises(ConfigError, match="would spoil the statistics of batch norm"):
        build_model(tiny_config(data, data, model=BATCH_NORM, global_batch=64, order=kept), specs)


def test_a_policy_for_batch_norm_needs_some(data: Path, specs: list[TaskSpec]) -> None:
    config = tiny_config(data, data, model=GROUP_NORM.model_copy(update={"batch_norm": "frozen"}))
    with pytest.raises(ConfigError, match="batch_norm=frozen would have no effect") as caught:
        build_model(config, specs)
    assert caught.value.got == "mtl.model.resnet9:resnet9, without batch norm"


@pytest.mark.parametrize(
    ("world_size", "max_micro_batch", "groups", "expected"),
    [(1, None, None, 32), (3, None, None, 12), (4, 100, None, 8), (4, 5, None, 5), (1, None, 2, 64), (1, 40, 2, 32)],
)
def test_a_micro_batch_holds_whole_groups(
    data: Path, world_size: int, max_micro_batch: int | None, groups: int | None, expected: int
) -> None:
    changes: dict[str, Any] = {"max_micro_batch": max_micro_batch}
    if groups:
        model = BATCH_NORM.model_copy(update={"batch_norm_groups": groups})
        changes |= {"model": model, "global_batch": 64}
    assert micro_batch(tiny_config(data, data, **changes), world_size) == expected


def averaged(dtype: torch.dtype) -> list[Any]:
    """On each rank: its buffers, before and after."""
    with LocalRuntime(gpu=False, threads=1, listen=lambda _: None) as runtime:
        torch.manual_seed(runtime.rank)
        model = small("batch").to(dtype)
        model(torch.randn(4, 3, 16, 16, dtype=dtype))
        before = [buffer.tolist() for buffer in model.buffers()]
        average_buffers(model, None, runtime)
        return [before, [buffer.tolist() for buffer in model.buffers()]]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_buffers_are_averaged(world_size: int, tmp_path: Path) -> None:
    results = values(Group(tmp_path / "ranks", world_size, averaged, torch.float64).wait())
    befores, afters = [r[0] for r in results], [r[1] for r in results]
    for number, mean in enumerate(afters[0]):
        expected = torch.tensor([before[number] for before in befores], dtype=torch.float64).mean(0)
        torch.testing.assert_close(torch.tensor(mean, dtype=torch.float64), expected, rtol=1e-12, atol=1e-12)
    assert all(after == afters[0] for after in afters)


def test_counters_and_models_without_buffers_are_left_alone() -> None:
    with LocalRuntime(gpu=False, threads=1, listen=lambda _: None) as runtime:
        model = nn.Linear(2, 2)
        average_buffers(model, None, runtime)
        assert not list(model.buffers())
