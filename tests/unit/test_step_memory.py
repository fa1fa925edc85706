"""How a step lies in memory: gradients in their buckets, channels last, one fused update."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from mtl import preflight
from mtl.config import Optimizer
from mtl.loop import train_step
from mtl.parts import build_model, build_specs
from mtl.runtime import LocalRuntime
from tests.helpers.batches import CPU, batch, counts, rows, trainee
from tests.helpers.datasets import tiny
from tests.helpers.engine import BATCH_NORM, GROUP_NORM, tiny_config
from tests.helpers.ranks import Group, values
from tests.helpers.whole_jobs import run

pytestmark = pytest.mark.usefixtures("numerics_as_before")

LAST = torch.channels_last
CONFIGS = {"sgd": Optimizer(name="sgd", lr=0.1), "adam": Optimizer(lr=0.1), "adamw": Optimizer(name="adamw", lr=0.1)}


def stepped(name: str) -> list[dict[str, Any]]:
    """On each rank: where the gradient of each parameter lies after each of two steps."""
    with LocalRuntime(gpu=False, threads=1, listen=lambda _: None) as runtime:
        made = trainee(
            dtype=torch.float32,
            world_size=2,
            optimizer=CONFIGS[name],
            clip_norm=0.01,
            wrap=lambda model: runtime.parallel(model.to(memory_format=LAST)),  # type: ignore[call-overload]
        )
        found: list[dict[str, Any]] = []
        for number in range(2):
            whole = batch(8, step=number, seed=number)
            part = rows(whole, slice(4 * runtime.rank, 4 * runtime.rank + 4))
            assert train_step(made, part, counts(whole), CPU) is not None
            gradients = [p.grad for p in made.model.parameters() if p.grad is not None]
            assert all(
                gradient.stride() == p.stride() for gradient, p in zip(gradients, made.model.parameters(), strict=True)
            )
            found.append(
                {
                    "storages": len({gradient.untyped_storage().data_ptr() for gradient in gradients}),
                    "places": len({gradient.data_ptr() for gradient in gradients}),
                    "bytes": gradients[0].untyped_storage().nbytes(),
                    "elements": sum(gradient.numel() for gradient in gradients),
                    "gradients": len(gradients),
                }
            )
        return found


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_gradients_are_views_into_the_bucket_through_whole_steps(name: str, tmp_path: Path) -> None:
    """Clipping and the update included: none of them leaves a copy in their place."""
    for steps in values(Group(tmp_path / "ranks", 2, stepped, name).wait()):
        for found in steps:
            assert found["storages"] == 1
            assert found["places"] == found["gradients"]
            assert found["bytes"] == 4 * found["elements"]


class Operations(TorchDispatchMode):
    """The names of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", list(CONFIGS))
def test_an_update_is_one_operation_for_each_group(name: str) -> None:
    made, one = trainee(dtype=torch.float32, optimizer=CONFIGS[name]), batch(4)
    groups = made.optimizer.param_groups
    assert all(group["fused"] for group in groups)
    with Operations() as operations:
        train_step(made, one, counts(one), CPU)
    assert operations.seen.count(f"_fused_{name}_") == len(groups)


@contextmanager
def convolved() -> Iterator[list[tuple[bool, bool, bool]]]:
    """Of each convolution meanwhile: whether it trains, and whether its images and its kernels are channels last.

    Not of those with two images: so many does a job try its model on before it trains.
    """
    seen: list[tuple[bool, bool, bool]] = []

    def look(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if isinstance(module, nn.Conv2d) and len(args[0]) > 2:
            seen.append((module.training, *(t.is_contiguous(memory_format=LAST) for t in (args[0], module.weight))))

    handle = register_module_forward_pre_hook(look)  # pyright: ignore[reportArgumentType]
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize("model", [GROUP_NORM, BATCH_NORM], ids=["group norm", "batch norm"])
def test_every_convolution_of_a_job_sees_channels_last(model: Any, tmp_path: Path) -> None:
    tiny(tmp_path / "data")
    config = tiny_config(tmp_path / "data", tmp_path / "runs", epochs=1, global_batch=64, model=model)
    with convolved() as seen:
        run(config)
    assert {training for training, *_ in seen} == {True, False}
    assert {last for _, *last in seen for last in last} == {True}


def test_channels_last_changes_no_output(tmp_path: Path) -> None:
    tiny(tmp_path / "data")
    config = tiny_config(tmp_path / "data", tmp_path / "runs", model=GROUP_NORM)
    model = build_model(config, build_specs(config, preflight.check(config).manifest))
    images = torch.randn(4, 3, 16, 16)
    last = model(images.contiguous(memory_format=LAST))
    plain = model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    assert not any(p.is_contiguous(memory_format=LAST) for p in plain.parameters() if p.ndim == 4 and p.shape[1] > 1)
    for name, output in plain(images).items():
        torch.testing.assert_close(last[name], output, rtol=1e-4, atol=1e-5)
