"""`compile` through whole jobs: what a compiled run leaves is what an eager one leaves, resumed or not."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch._inductor.cpp_builder import get_cpp_compiler

from mtl.config import Checkpoint, Config
from tests.helpers.datasets import tiny
from tests.helpers.engine import EXACT, SMALL, result_of, rows, tiny_config
from tests.helpers.tensors import assert_same
from tests.helpers.whole_jobs import interrupted, newest, run

pytestmark = pytest.mark.usefixtures("numerics_as_before")


def compiler() -> str | None:
    """Why nothing can be compiled here, None if it can."""
    try:
        get_cpp_compiler()
    except Exception as error:
        return f"torch finds no C++ compiler here: {error}"
    return None


def losses(config: Config) -> dict[object, dict[str, float]]:
    return {key: row["loss"] for key, row in rows(config).items() if "loss" in row}


@pytest.mark.slow
def test_a_compiled_run_is_the_eager_one_and_goes_on_after_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why := compiler():
        pytest.skip(why)
    tiny(tmp_path / "data")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    torch.compiler.reset()
    counters.clear()

    def made(name: str, *, compile: bool) -> Config:
        often = Checkpoint(every_s=1e-9, background=False)
        return tiny_config(tmp_path / "data", tmp_path / "runs", name, compile=compile, model=SMALL, checkpoint=often)

    eager, whole, parted = made("eager", compile=False), made("whole", compile=True), made("parted", compile=True)
    run(eager, torch.float64)
    assert not counters["stats"]["unique_graphs"]
    run(whole, torch.float64)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    interrupted(parted, monkeypatch, 5, torch.float64)
    assert losses(whole).keys() == losses(eager).keys()
    for key, loss in losses(eager).items():  # a compiler may add up in another order
        assert losses(whole)[key] == pytest.approx(loss, **EXACT), key
        assert losses(parted)[key] == losses(whole)[key], key
    ends: list[dict[str, Tensor]] = [newest(one).files["model"] for one in (eager, whole, parted)]
    for name, tensor in ends[0].items():
        torch.testing.assert_close(ends[1][name], tensor, rtol=1e-9, atol=1e-9, msg=name)
    assert_same(ends[2], ends[1])
    assert result_of(parted)["metrics"] == result_of(whole)["metrics"]
