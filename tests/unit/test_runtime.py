"""Where a process finds itself, and how ranks talk."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mtl.errors import ResourceError
from mtl.runtime import LocalRuntime, pick_device
from tests.helpers.ranks import Group, values


def alone(events: list[dict[str, Any]] | None = None) -> LocalRuntime:
    return LocalRuntime(gpu=False, threads=1, listen=[].append if events is None else events.append)


def test_a_process_alone() -> None:
    events: list[dict[str, Any]] = []
    with alone(events) as runtime:
        assert (runtime.rank, runtime.world_size, runtime.device.type) == (0, 1, "cpu")
        assert runtime.sum(torch.tensor([3.0])).tolist() == [3.0]
        assert runtime.control(torch.tensor([4])).wait().tolist() == [4]
        assert runtime.share("owner") == "owner"
        model = nn.Linear(1, 1)
        assert runtime.parallel(model) is model
        runtime.emit({"kind": "note"})
        runtime.report({"loss": 1.0})
    assert events == [{"kind": "note"}]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_to_stop(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with alone() as runtime:
        assert not runtime.stop_requested()
        os.kill(os.getpid(), number)
        assert runtime.stop_requested()
        os.kill(os.getpid(), signal.SIGTERM)  # the scheduler may insist; there is nothing more to do
    assert signal.getsignal(number) is before


def test_a_second_interrupt_ends_the_process() -> None:
    with alone() as runtime:
        os.kill(os.getpid(), signal.SIGINT)
        assert runtime.stop_requested()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_gpu_that_is_not_there() -> None:
    if torch.cuda.device_count():
        pytest.skip("this machine has one")
    with pytest.raises(ResourceError, match="no GPU for this process"):
        pick_device(True, 0)
    assert pick_device(False, 3).type == "cpu"


def talk() -> dict[str, Any]:
    events: list[dict[str, Any]] = []
    with LocalRuntime(gpu=False, threads=1, listen=events.append) as runtime:
        rank = runtime.rank
        pending = [runtime.control(torch.tensor([float(rank), at])) for at in (0, 1)]
        norm = nn.BatchNorm1d(2)
        model = nn.Sequential(nn.Linear(2, 2), norm)
        parallel = runtime.parallel(model)
        assert isinstance(parallel, DistributedDataParallel)
        parallel(torch.full((2, 2), float(rank)) + torch.eye(2)).sum().backward()
        assert norm.bias.grad is not None
        assert norm.running_mean is not None
        runtime.emit({"rank": rank})
        # Wraps around like the sum of unsigned hashes that it stands for.
        large = runtime.sum(torch.tensor([2**63 - 1]))
        return {
            "control": [one.wait().tolist() for one in pending],
            "share": runtime.share(f"from {rank} é"),
            "nothing": runtime.share(""),
            "large": large.item(),
            "gradient": norm.bias.grad.tolist(),
            "running": norm.running_mean.tolist(),
            "threads": torch.get_num_threads(),
            "events": events,
        }


@pytest.mark.parametrize("world_size", [2, 3])
def test_a_group(world_size: int, tmp_path: Path) -> None:
    results = values(Group(tmp_path / "ranks", world_size, talk).wait())
    ranks = sum(range(world_size))
    for rank, result in enumerate(results):
        assert result["control"] == [[ranks, 0], [ranks, world_size]]
        assert result["share"] == "from 0 é"
        assert result["nothing"] == ""
        assert result["large"] == (world_size * (2**63 - 1) + 2**63) % 2**64 - 2**63
        assert result["gradient"] == [2.0, 2.0]
        assert result["threads"] == 1
        assert result["events"] == ([{"rank": 0}] if rank == 0 else [])
    # Running statistics are not broadcast from rank 0: they are ours to average.
    assert results[0]["running"] != results[1]["running"]
