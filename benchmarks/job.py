"""How much of the speed of a bare loop does a whole job keep, under torchrun and under Ray, and with its commits?

ResNet-18 at 64 px with two heads, decoded images in memory, two cores.

    cached_over_bare    images/s of the job's steps over those of a loop written by hand (same model, losses, optimizer,
                        batch and flags; one resident batch; no loader, no metrics), in this process, in turns of 3 s
    ray_over_torchrun   images/s of the same job, evaluations and commits included, on Ray over under torchrun, in turns
                        of 6 s: /2 has two workers of one core each; /1 has one, and Ray's daemons the other core
    checkpoint_stall    share of the time for which commits hold the steps, at the default cadence: what one holds them
                        (`checkpoint_stall_s`), measured at a commit every few steps, over `checkpoint.every_s`

    python benchmarks/job.py [--rounds N] [--quick] [--only WORD]
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
from torch.nn import functional as F

from benchmarks.common import emit, say
from benchmarks.turns import Side, take_turns
from mtl import local, preflight
from mtl.config import Augment, Checkpoint, Config, Loader, Model, Optimizer, Order, Resources, Task
from mtl.console import RunConsole, counted
from mtl.optim import build_optimizer
from mtl.parts import build_model, build_specs
from mtl.preflight import Plan
from mtl.runtime import LocalRuntime
from mtl.store import open_store
from tests.helpers.datasets import tiny

BATCH, SIZE_PX = 64, 64
TURN_S = 3.0


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
        "ray_over_torchrun/1": partial(ray_over_torchrun, workers=1),
        "ray_over_torchrun/2": partial(ray_over_torchrun, workers=2),
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
    """A few seconds of a job, as many steps of the bare loop, and so on. The first epoch, which decodes, is left out.

    What is compared is the whole time of each, so that what commits slow down counts.
    """
    config = configuration(folder, "cached", rounds + 1, log_every_s=TURN_S)
    bare = bare_loop(config, preflight.check(config))
    turns: list[tuple[int, float, float]] = []
    before = 0

    def listen(event: dict[str, Any]) -> None:
        # The loop does not count the time of its listener.
        nonlocal before
        if event["kind"] != "progress":
            return
        count, before = event["step"] - before, event["step"]
        if event["step"] <= steps:
            return
        began = time.perf_counter()
        for _ in range(count):
            bare()
        turns.append((count, BATCH * count / event["images_per_s"], time.perf_counter() - began))

    run(config, listen)
    counts, ours_s, bare_s = map(sum, zip(*turns, strict=True))
    each = sorted(theirs / ours for _, ours, theirs in turns)
    middle = f"{len(turns)} turns, the middle half {each[len(each) // 4]:.3f} to {each[-(len(each) // 4) - 1]:.3f}"
    report("cached_over_bare", bare_s / ours_s, BATCH * counts / ours_s, BATCH * counts / bare_s, middle)


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


def ray_over_torchrun(folder: Path, rounds: int, steps: int, *, workers: int) -> None:
    """Two jobs that take turns, with their evaluations and commits; the first epoch of each does not count."""
    turns = max(rounds * steps // 12, 1)
    sides = begin(folder, "ray", workers), begin(folder, "local", workers)
    try:
        ours, base = take_turns(sides, warm=steps + steps // 8, turns=turns, turn_s=2 * TURN_S)
    finally:
        for side in sides:
            side.end()
    spread = f"{counted(turns, 'turn')} of {2 * TURN_S:.0f} s each, {counted(workers, 'worker')} of one core"
    report(f"ray_over_torchrun/{workers}", ours / base, BATCH * ours, BATCH * base, spread)


def begin(folder: Path, runtime: str, workers: int) -> Side:
    """A job of workers in processes of their own, longer than anyone waits."""
    resources = Resources(workers=workers, cpus_per_worker=1)
    name = f"{runtime}-{workers}"
    config = configuration(folder, name, 10_000, runtime=runtime, resources=resources, log_every_s=0.5)
    path = folder / f"{name}.yaml"
    path.write_text(config.to_yaml())
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
    launcher = torchrun if runtime == "local" else []
    command = [sys.executable, *launcher, "jobs/train.py", "--config", str(path)]
    return Side(name, command, folder / f"{name}.log", cwd=ROOT)


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


def report(metric: str, ratio: float, ours: float, base: float, spread: str) -> None:
    """A ratio of images/s, said and emitted."""
    say(f"{metric}: {ratio:.3f} ({spread}), {ours:.0f} images/s")
    emit("job", metric, ratio, "ratio", baseline=base, ratio=ratio)


if __name__ == "__main__":
    main()
