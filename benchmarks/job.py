"""How much of the speed of a bare loop does a whole job keep, under torchrun and under Ray, and with its commits?

ResNet-18 at 64 px with two heads, decoded images in memory, two cores.

    cached_over_bare    images/s of the job's steps over those of a loop written by hand (same model, losses, optimizer,
                        batch and flags; one resident batch; no loader, no metrics), in this process, in turns of epochs
    ray_over_torchrun   images/s of the same job with two workers of one core each, on Ray over under torchrun, in turns
    checkpoint_stall    share of the time for which commits hold the steps, at the default cadence: what one holds them
                        (`checkpoint_stall_s`), measured at a commit every few steps, over `checkpoint.every_s`

    python benchmarks/job.py [--rounds N] [--quick] [--only WORD]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
from torch.nn import functional as F

from benchmarks.common import emit, say
from mtl import local, preflight
from mtl.config import Augment, Checkpoint, Config, Loader, Model, Optimizer, Order, Resources, Task
from mtl.console import RunConsole
from mtl.optim import build_optimizer
from mtl.parts import build_model, build_specs
from mtl.preflight import Plan
from mtl.runtime import LocalRuntime
from mtl.store import open_store
from tests.helpers.datasets import tiny

BATCH, SIZE_PX = 64, 64


def main() -> None:
    """Write a data set, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two rounds of four steps")
    parser.add_argument("--only", default="", help="measure only what has this word in its name")
    asked = parser.parse_args()
    rounds, steps = (2, 4) if asked.quick else (asked.rounds, 96)
    torch.set_num_threads(2)
    measures: dict[str, Callable[[Path, int, int], None]] = {
        "cached_over_bare": cached_over_bare,
        "ray_over_torchrun": ray_over_torchrun,
        "checkpoint_stall": checkpoint_stall,
    }
    with tempfile.TemporaryDirectory(prefix="mtl-job-") as scratch:
        data = Path(scratch) / "data"
        rows = {"train": BATCH * steps, "val": BATCH, "test": BATCH}
        tiny(data, rows=rows, size_px=SIZE_PX, row_group_bytes=200_000, shard_bytes=2_000_000, missing=0.0)
        for name, measure in measures.items():
            if asked.only in name:
                measure(Path(scratch), rounds, steps)


def configuration(folder: Path, name: str, epochs: int, **changes: Any) -> Config:
    """A job on the data set in `folder`; a row of metrics for each epoch."""
    values: dict[str, Any] = {
        "recipe": "benchmark",
        "name": name,
        "data": str(folder / "data"),
        "storage": str(folder / "runs"),
        "runtime": "local",
        "epochs": epochs,
        "global_batch": BATCH,
        "log_every_s": 1e9,
        "tasks": {"object": Task(kind="multiclass", label="object"), "kind": Task(kind="binary", label="kind")},
        "augment": Augment(size_px=SIZE_PX, crop="padded", brightness=0.0, eval_resize_px=SIZE_PX),
        "model": Model(backbone="resnet18", batch_norm="local"),
        "optimizer": Optimizer(name="sgd", lr=1e-3),
        "order": Order(lanes=4, block_row_groups=None),
        "loader": Loader(memory="decoded", prefetch_batches=1),
        "resources": Resources(workers=1),
    }
    return Config(**{**values, **changes})


def cached_over_bare(folder: Path, rounds: int, steps: int) -> None:
    """Epochs of a job, a bare loop of as many steps after each; the first epoch, which decodes, does not count."""
    config = configuration(folder, "cached", rounds + 1)
    bare = bare_loop(config, preflight.check(config))
    pairs: list[tuple[float, float]] = []

    def listen(event: dict[str, Any]) -> None:
        # The loop does not count the time of its listener.
        if event["kind"] == "progress":
            began = time.perf_counter()
            for _ in range(steps):
                bare()
            pairs.append((event["images_per_s"], BATCH * steps / (time.perf_counter() - began)))

    run(config, listen)
    compare("cached_over_bare", pairs[1:])


def bare_loop(config: Config, plan: Plan) -> Callable[[], None]:
    """A training step as one writes it by hand, on one batch that is there."""
    model = build_model(config, build_specs(config, plan.manifest)).train()
    optimizer = build_optimizer(model, config.optimizer)
    images = torch.randn(BATCH, 3, SIZE_PX, SIZE_PX).contiguous(memory_format=torch.channels_last)
    things, kinds = torch.randint(3, (BATCH,)), torch.randint(2, (BATCH, 1)).float()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        outputs = model(images)
        kind = F.binary_cross_entropy_with_logits(outputs["kind"].reshape(BATCH, 1), kinds)
        (F.cross_entropy(outputs["object"], things) + kind).backward()
        optimizer.step()

    return step


def ray_over_torchrun(folder: Path, rounds: int, steps: int) -> None:
    """Whole jobs of two epochs and more, one after the other; the first epoch of each does not count."""
    del steps  # an epoch's, which the data set decides
    pairs: list[tuple[float, float]] = []
    for number in range(max(rounds // 2, 1)):
        found = {runtime: job_images_per_s(folder, runtime, number) for runtime in ("local", "ray")}
        pairs.append((found["ray"], found["local"]))
    compare("ray_over_torchrun", pairs)


def job_images_per_s(folder: Path, runtime: str, number: int) -> float:
    """The median epoch of a job of two workers in processes of their own."""
    resources = Resources(workers=2, cpus_per_worker=1)
    config = configuration(folder, f"{runtime}-{number}", 4, runtime=runtime, resources=resources)
    path = folder / f"{config.name}.yaml"
    path.write_text(config.to_yaml())
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] if runtime == "local" else []
    command = [sys.executable, *launcher, "jobs/train.py", "--config", str(path)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return statistics.median(row["images_per_s"] for row in progress(config)[1:])


def checkpoint_stall(folder: Path, rounds: int, steps: int) -> None:
    """One job that commits every few seconds; the commits at an epoch's end are between rows, and do not count."""
    every_s = 1.0
    often = Checkpoint(every_s=every_s)
    config = configuration(folder, "commits", rounds + 2, log_every_s=every_s / 2, checkpoint=often)
    commits = 0

    def listen(event: dict[str, Any]) -> None:
        nonlocal commits
        commits += event["kind"] == "commit" and event["step"] % steps != 0

    run(config, listen)
    rows, held_s = progress(config), 0.0
    for row, before in zip(rows, [0, *(row["step"] for row in rows)], strict=False):
        held_s += row["blame"]["commit"] * (row["step"] - before) * BATCH / row["images_per_s"]
    each_s, cadence_s = held_s / max(commits, 1), Checkpoint().every_s
    emit("job", "checkpoint_stall_s", each_s, "s")
    emit("job", "checkpoint_stall", each_s / cadence_s, "ratio", baseline=cadence_s, ratio=each_s / cadence_s)


def run(config: Config, listen: Callable[[dict[str, Any]], None]) -> None:
    """The job in this process, on two cores."""
    with LocalRuntime(gpu=False, threads=2, listen=listen) as runtime:
        local.lead(config, RunConsole(sys.stderr), runtime)


def progress(config: Config) -> list[dict[str, Any]]:
    """A run's rows of progress, by step."""
    store = open_store(config.storage).child(config.name)
    lines = [line for key in store.list("metrics/") for line in store.get(key).decode().splitlines()]
    return sorted((row for row in map(json.loads, lines) if "images_per_s" in row), key=lambda row: row["step"])


def compare(metric: str, pairs: list[tuple[float, float]]) -> None:
    """The median ratio of images/s taken in turns, and its range."""
    ratios = [ours / base for ours, base in pairs]
    ratio = statistics.median(ratios)
    ours, base = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
    spread = f"{min(ratios):.3f} to {max(ratios):.3f} over {len(ratios)} rounds"
    say(f"{metric}: {ratio:.3f} ({spread}), {ours:.0f} images/s")
    emit("job", metric, ratio, "ratio", baseline=base, ratio=ratio)


if __name__ == "__main__":
    main()
