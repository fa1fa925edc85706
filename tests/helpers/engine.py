"""The training engine in tests: a tiny configuration, training it on a rank, and what a run leaves behind."""

import hashlib
import io
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mtl import job, local, preflight, session
from mtl.checkpoint import load_newest
from mtl.config import Augment, Checkpoint, Config, Model, Optimizer, Order, Resources, Task
from mtl.console import RunConsole
from mtl.lease import acquire
from mtl.record import Record, read
from mtl.runtime import LocalRuntime
from mtl.store import Store, open_store
from mtl.trainee import Trainee
from tests.helpers.faults import Fault, install

Result = dict[str, Any]

EXACT: dict[str, Any] = {"rel": 1e-9, "abs": 1e-9}
"""What float64 must reach, for `pytest.approx`."""

TASKS = {
    "object": Task(kind="multiclass", label="object", label_smoothing=0.1),
    "kind": Task(kind="binary", label="kind", weight=0.5),
    "angle": Task(kind="circular", label="angle", flip="negate"),
    "amount": Task(kind="regression", label="amount", flip="negate"),
}

GROUP_NORM = Model(
    backbone="mtl.model.resnet9:resnet9", backbone_args={"width": 8, "norm": "group"}, batch_norm="local"
)
BATCH_NORM = Model(
    backbone="mtl.model.resnet9:resnet9",
    backbone_args={"width": 8, "norm": "batch"},
    batch_norm="groups",
    batch_norm_groups=4,
)
SMALL = Model(backbone="tests.helpers.backbones:small", batch_norm="local")
"""Of the three, the one that trains fastest."""


def tiny_config(data: Path, storage: Path, name: str = "tiny", **changes: Any) -> Config:
    """Two epochs of 32 samples a step over the data set at `data`, written by `tests.helpers.datasets`.

    Commits are written where they are taken, so that it is known which ones there are.
    """
    values: dict[str, Any] = {
        "recipe": "tiny",
        "name": name,
        "data": str(data),
        "storage": str(storage),
        "runtime": "local",
        "epochs": 2,
        "global_batch": 32,
        "log_every_s": 1e-9,
        "tasks": TASKS,
        "augment": Augment(size_px=16, crop="padded", contrast=0.1, saturation=0.1, eval_resize_px=16, pixels="exact"),
        "model": GROUP_NORM,
        "optimizer": Optimizer(name="adam", lr=2e-3, warmup_epochs=0.5, weight_decay=1e-3, clip_norm=5.0),
        "order": Order(lanes=8, block_row_groups=2),
        "checkpoint": Checkpoint(background=False),
        "resources": Resources(workers=1),
    }
    return Config(**{**values, **changes})


def train(
    config: Config,
    dtype: torch.dtype = torch.float64,
    faults: tuple[Fault, ...] = (),
    takeover_after_s: float = 10.0,
    heartbeat_s: float = 0.2,
) -> Result:
    """One rank of a job, from the checks to the result, which gets a digest of this rank's parameters beside it."""
    rank, trained = int(os.environ["RANK"]), list[Trainee]()
    install(faults, rank)
    session.acquire = partial(acquire, takeover_after_s=takeover_after_s, heartbeat_s=heartbeat_s)
    loop = job.train

    def remember(config: Config, trainee: Trainee, *args: Any, **kwargs: Any) -> bool:
        trained.append(trainee)
        return loop(config, trainee, *args, **kwargs)

    job.train = remember
    with LocalRuntime(gpu=False, threads=1, listen=lambda _: None) as runtime:
        if rank == 0:
            preflight.check(config)
            result = local.lead(config, RunConsole(io.StringIO()), runtime, dtype)
        else:
            result = local.follow(config, runtime, dtype)
    return {**result, "digest": digest(trained[-1].model) if trained else ""}


def digest(model: torch.nn.Module) -> str:
    """A hash of every bit of the parameters."""
    total = hashlib.sha256()
    for parameter in model.parameters():
        total.update(parameter.detach().contiguous().numpy().tobytes())
    return total.hexdigest()


def saved(config: Config) -> dict[str, Tensor]:
    """The model of the run's newest commit."""
    store = open_store(config.storage).child(config.name)
    record = read(store)
    assert record is not None
    found = load_newest(store, record.checkpoints, print)
    assert found is not None
    return found[1].files["model"]


def rows(config: Config) -> dict[object, dict[str, Any]]:
    """The run's rows of metrics by step, or by epoch and split; of the highest attempt where several went there."""
    store = open_store(config.storage).child(config.name)
    found: dict[object, dict[str, Any]] = {}
    for key in sorted(store.list("metrics/")):
        for line in store.get(key).decode().splitlines():
            row = json.loads(line)
            found[row.get("step"), row["epoch"], row.get("split")] = row
    return found


def assert_same_run(got: Config, expected: Config) -> None:
    """The same samples, and the same losses, metrics and parameters to nine digits."""
    these, those = rows(got), rows(expected)
    assert these.keys() == those.keys()
    for at, row in these.items():
        for kind in ("loss", "metrics"):
            assert flat(row.get(kind)) == pytest.approx(flat(those[at].get(kind)), **EXACT)
    a, b = result_of(got), result_of(expected)
    for field in ("ledger", "order_id", "steps", "quarantined", "skipped"):
        assert a[field] == b[field]
    assert flat(a["metrics"]) == pytest.approx(flat(b["metrics"]), **EXACT)
    mine, yours = saved(got), saved(expected)
    assert mine.keys() == yours.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, yours[name], rtol=1e-9, atol=1e-9, msg=name)


def flat(tree: Any, prefix: str = "") -> dict[str, float]:
    if not isinstance(tree, dict):
        return {} if tree is None else {prefix: tree}
    return {name: leaf for key, part in tree.items() for name, leaf in flat(part, f"{prefix}/{key}").items()}


def store_of(config: Config) -> Store:
    """Where the run is."""
    return open_store(config.storage).child(config.name)


def record_of(config: Config) -> Record:
    """Its run.json."""
    record = read(store_of(config))
    assert record is not None
    return record


def result_of(config: Config) -> Result:
    """The result of a finished run."""
    result = record_of(config).result
    assert result is not None
    return result
