"""Memory that runs out is an error with advice; everything else passes."""

from pathlib import Path

import pytest
import torch
from ray.exceptions import OutOfMemoryError
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from mtl.errors import ResourceError
from mtl.memory import HOST, attributed
from mtl.on_ray.failures import killed_for_memory
from mtl.on_ray.train import _readable
from tests.helpers.engine import tiny_config

CONFIG = tiny_config(Path("data"), Path("runs"), max_micro_batch=12)


def test_the_gpus_memory() -> None:
    with pytest.raises(ResourceError, match="GPU's memory ran out") as caught, attributed(CONFIG, 2):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 has ...")
    assert caught.value.got == "12 samples of 16 px in a forward pass; CUDA out of memory. Tried to allocate 2 GiB."
    assert caught.value.do is not None
    assert caught.value.do.startswith("set --max-micro-batch 6:")
    larger = CONFIG.model_copy(
        update={"augment": CONFIG.augment.model_copy(update={"eval_size_px": 24, "eval_resize_px": 24})}
    )
    with pytest.raises(ResourceError) as caught, attributed(larger, 2):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    assert caught.value.got == "12 samples of 16 or 24 px in a forward pass; CUDA out of memory."


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here, whose memory could be limited")
def test_the_memory_of_a_gpu_that_is_limited() -> None:
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(0.05)
    try:
        with pytest.raises(ResourceError, match="GPU's memory ran out") as caught, attributed(CONFIG, 1):
            torch.empty(whole // 10, dtype=torch.uint8, device="cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "12 samples of 16 px" in str(caught.value.got)
    assert "--max-micro-batch 6" in str(caught.value.do)


def test_memory_of_a_process_that_is_limited() -> None:
    with pytest.raises(ResourceError, match="memory of a worker ran out") as caught, attributed(CONFIG, 1):
        torch.empty(2**60, dtype=torch.uint8)
    assert "DefaultCPUAllocator" in str(caught.value.got)
    assert caught.value.do == HOST
    with pytest.raises(ResourceError, match="memory of a worker ran out"), attributed(CONFIG, 1):
        bytearray(2**62)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("no"), KeyboardInterrupt()])
def test_other_errors_pass(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, attributed(CONFIG, 1):
        raise error
    assert caught.value is error


def test_a_worker_that_ray_ended_for_memory_is_told_from_others() -> None:
    killed = WorkerHealthCheckFailedError("a worker failed", OutOfMemoryError("used 15 of 16 GB"))
    assert killed_for_memory(killed)
    assert not killed_for_memory(WorkerHealthCheckFailedError("a worker failed", RuntimeError("no")))
    told = _readable(WorkerGroupError("failed", {1: killed}))
    assert isinstance(told, ResourceError)
    assert "machine of worker 1 ran out of memory" in told.what
    assert "used 15 of 16 GB" in str(told.got)
    assert told.do == HOST


def test_a_controller_that_ray_ended_for_memory_is_no_traceback() -> None:
    told = _readable(OutOfMemoryError("6 worker(s) were killed\nand pages more"))
    assert isinstance(told, ResourceError)
    assert told.what.startswith("A machine ran out of memory")
    assert (told.got, told.do) == ("6 worker(s) were killed", HOST)
