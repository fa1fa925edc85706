"""Jobs that begin from weights on object storage: what is loaded and what is not, and that it is what trains."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from mtl import preflight
from mtl.config import Config, Optimizer
from mtl.errors import ConfigError
from mtl.parts import build_model, build_specs
from mtl.store import open_store
from tests.helpers.datasets import tiny
from tests.helpers.engine import BATCH_NORM, SMALL, record_of, result_of, tiny_config
from tests.helpers.moto_server import simulated_s3
from tests.helpers.whole_jobs import Events, interrupted, newest, run

pytestmark = pytest.mark.usefixtures("numerics_as_before")

FILE = "pretrained/small.safetensors"
STILL = Optimizer(name="sgd", lr=1e-30, momentum=0.0)
HEAD, BIAS = "heads.object.out.weight", "heads.object.out.bias"


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with simulated_s3("weights"):
        yield "s3://weights"


@pytest.fixture
def weights(bucket: str, tmp_path: Path) -> dict[str, torch.Tensor]:
    """Those of the model under another seed, whose `object` had five classes, in FILE of the bucket."""
    tiny(tmp_path / "data")
    other = tiny_config(tmp_path / "data", tmp_path / "runs", seed=5, model=SMALL)
    model = build_model(other, build_specs(other, preflight.check(other).manifest))
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    tensors |= {HEAD: torch.ones(5, 64), BIAS: torch.ones(5)}
    open_store(bucket).put(FILE, save(tensors))
    return tensors


def tuned(bucket: str, tmp_path: Path, name: str = "tuned", **changes: Any) -> Config:
    model = SMALL.model_copy(update={"init_from": f"{bucket}/{FILE}"})
    return tiny_config(tmp_path / "data", tmp_path / "runs", name, **{"model": model, **changes})


def notes(events: Events) -> str:
    return "\n".join(event["text"] for event in events if event["kind"] == "note")


def test_training_begins_where_the_file_ends_but_for_heads_of_other_classes(
    bucket: str, weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    config = tuned(bucket, tmp_path, optimizer=STILL, epochs=1)
    told = notes(run(config))
    assert f"{len(weights) - 2} tensors loaded from {bucket}/{FILE}" in told
    replaced = "2 tensors start anew, because the file's have another shape: "
    assert f"{replaced}{HEAD} [5, 64] -> [3, 64], {BIAS} [5] -> [3]" in told
    end = newest(config).files["model"]
    assert end[HEAD].shape == (3, 64)
    for name in weights.keys() - {HEAD, BIAS}:
        torch.testing.assert_close(end[name], weights[name], rtol=0, atol=1e-20, msg=name)


def test_a_fine_tuned_run_learns_and_goes_on_without_the_file(
    bucket: str, weights: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parted = tuned(bucket, tmp_path, "whole"), tuned(bucket, tmp_path, "parted")
    run(whole)
    with monkeypatch.context() as patch:
        interrupted(parted, patch, 6)
    ends = [newest(one).files["model"] for one in (whole, parted)]
    assert all(tensor.equal(ends[1][name]) for name, tensor in ends[0].items())
    assert not any(tensor.equal(weights[name]) for name, tensor in ends[0].items() if name.endswith("0.weight"))
    assert result_of(whole)["metrics"] == result_of(parted)["metrics"]


def test_a_commit_on_object_storage_serves_another_run(bucket: str, tmp_path: Path) -> None:
    tiny(tmp_path / "data")
    first = tiny_config(tmp_path / "data", tmp_path / "runs", model=SMALL, epochs=1)
    first = first.model_copy(update={"storage": f"{bucket}/runs"})
    run(first)
    address = f"{bucket}/runs/tiny/{record_of(first).checkpoints[0].path}/model.safetensors"
    second = tuned(bucket, tmp_path, optimizer=STILL, model=SMALL.model_copy(update={"init_from": address}), epochs=1)
    assert f"loaded from {address}" in notes(run(second))
    expected = load(open_store(bucket).get(address.removeprefix(f"{bucket}/")))
    for name, tensor in newest(second).files["model"].items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-20, msg=name)


def test_frozen_batch_norm_keeps_the_statistics_of_the_file_through_a_job(bucket: str, tmp_path: Path) -> None:
    tiny(tmp_path / "data")
    first = tiny_config(tmp_path / "data", tmp_path / "runs", global_batch=64, model=BATCH_NORM)
    run(first)
    before = newest(first).files["model"]
    open_store(bucket).put(FILE, save({name: tensor.contiguous() for name, tensor in before.items()}))
    model = {"init_from": f"{bucket}/{FILE}", "batch_norm_groups": 2}
    frozen, moving = (
        tuned(bucket, tmp_path, policy, model=BATCH_NORM.model_copy(update={**model, "batch_norm": policy}))
        for policy in ("frozen", "local")
    )
    for config, stays in ((frozen, True), (moving, False)):
        run(config)
        after = newest(config).files["model"]
        statistics = [name for name in after if "running_" in name]
        assert statistics
        assert all(after[name].equal(before[name]) == stays for name in statistics)
        assert not any(after[name].equal(before[name]) for name in after if name.endswith("0.weight"))


def test_a_file_that_is_not_there_ends_the_run_with_its_address(bucket: str, tmp_path: Path) -> None:
    tiny(tmp_path / "data")
    model = SMALL.model_copy(update={"init_from": f"{bucket}/pretrained/none.safetensors"})
    with pytest.raises(ConfigError, match=r"The weights s3://weights/pretrained/none\.safetensors can not be read"):
        run(tuned(bucket, tmp_path, model=model))
