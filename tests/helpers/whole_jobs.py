"""Whole jobs in this process: trained to the end, or killed at a commit and gone on with; what they leave."""

import io
from typing import Any

import pytest
import torch

from mtl import job, local
from mtl.checkpoint import Checkpoint as Saved
from mtl.checkpoint import load
from mtl.config import Config
from mtl.console import RunConsole
from mtl.runtime import LocalRuntime
from mtl.store import Store
from tests.helpers.engine import record_of, result_of, store_of
from tests.helpers.tensors import assert_same

Events = list[dict[str, Any]]


class Crash(Exception):
    """The end of a process."""


def run(config: Config, dtype: torch.dtype = torch.float32) -> Events:
    """Train to the end; what the job told."""
    events: Events = []
    with LocalRuntime(gpu=False, threads=1, listen=events.append) as runtime:
        local.lead(config, RunConsole(io.StringIO()), runtime, dtype)
    return events


def newest(config: Config) -> Saved:
    """What the run's last commit holds."""
    commit = record_of(config).checkpoints[0]
    return load(store_of(config), commit.path, commit.manifest_sha256)


def crash_at_step(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """The process of the next run dies before it begins to write the commit of `step`."""
    save = job.save

    def dying(store: Store, path: str, *args: Any) -> str:
        if f"step-{step:09d}-a1" in path:
            raise Crash
        return save(store, path, *args)

    monkeypatch.setattr(job, "save", dying)


def interrupted(config: Config, monkeypatch: pytest.MonkeyPatch, step: int, dtype: torch.dtype = torch.float32) -> None:
    """Train until the process dies at the commit of `step`, and then to the end."""
    with monkeypatch.context() as patch:
        crash_at_step(patch, step)
        with pytest.raises(Crash):
            run(config, dtype)
    run(config, dtype)


def assert_same_end(got: Config, expected: Config) -> None:
    """Bit by bit: all tensors of the last commit, what else it holds, the metrics."""
    a, b = newest(got), newest(expected)
    assert a.files.keys() == b.files.keys()
    for name, tensors in a.files.items():
        assert_same(tensors, b.files[name])
    for name in ("precision", "ema", "selection", "balancer", "ledger", "evaluations"):
        assert a.state.get(name) == b.state.get(name), name
    assert result_of(got)["metrics"] == result_of(expected)["metrics"]
