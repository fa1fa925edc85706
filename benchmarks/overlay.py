"""Do balancing methods pay? All of them on pairs of overlaid images, against unit weights, tuned ones, single tasks.

    python benchmarks/overlay.py --data data/overlay --out overlay.jsonl [--seeds 3] [--only WORD ...] [--table]

The data set is that of examples/overlay_pairs.py, the model and everything else that of examples/overlay.yaml, but for
a smaller image and width, and training ends after three epochs: forty minutes of one CPU core. Two settings: `overlay`,
where the two tasks share as many features as there are in the configuration, and `conflict`, where they share so few
that what one gains the other loses. Methods that look at gradients see the exact Gram matrix.

A run is a training step of mtl.loop on batches that are in memory, in the same order and from the same initial weights
for every variant of a seed. Each finished run is a line of --out; what is there is not repeated. --table prints the
comparison of what is there.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.common import say
from mtl.balancing import METHODS
from mtl.balancing.base import Needs
from mtl.balancing.build import build_balancer
from mtl.balancing_config import Balancing
from mtl.config import Config, load
from mtl.data.batch import OK, Batch
from mtl.data.colour import Standardise
from mtl.data.keyed import key, permutation
from mtl.data.manifest import Index, Manifest
from mtl.loop import train_step
from mtl.metrics.gain import delta_m
from mtl.mixing import DataSet
from mtl.optim import build_optimizer, set_learning_rate
from mtl.parts import build_loader, build_model, build_specs, build_weigher, evaluation_order, micro_batch, signal_of
from mtl.precision import Precision
from mtl.runtime import LocalRuntime
from mtl.store import open_store
from mtl.tally import Tally
from mtl.trainee import Trainee

RECIPE = Path(__file__).resolve().parents[1] / "examples" / "overlay.yaml"
SIZE_PX, BATCH = 20, 256
SETTINGS = {"overlay": 128, "conflict": 8}
"""Features that the tasks share."""

TUNED = (0.5, 0.75, 1.25, 1.5)
"""Weights of the first task that are tried, of two that sum to two; one is unit scalarisation."""

STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""97.5 % quantiles of Student's t, by degrees of freedom."""


@dataclass(frozen=True)
class Resident:
    """A split in memory: uint8 images [n, size, size, 3] and class ids [n] of each task."""

    images: npt.NDArray[np.uint8]
    labels: dict[str, npt.NDArray[np.int64]]


@dataclass(frozen=True)
class Variant:
    """What is compared: a method, static weights, or a task alone."""

    name: str
    balancing: Balancing = field(default_factory=Balancing)
    weights: tuple[float, float] = (1.0, 1.0)
    alone: str | None = None


def variants(tasks: list[str]) -> Iterator[Variant]:
    """Single tasks and unit weights first, as everything is measured against them."""
    for task in tasks:
        yield Variant(f"single-{task}", alone=task)
    yield Variant("static")
    for weight in TUNED:
        yield Variant(f"static-{weight:g}", weights=(weight, 2 - weight))
    for method in METHODS:
        if method != "static":
            looks = Needs.GRAM in build_balancer(method, len(tasks), 0).needs
            yield Variant(method, Balancing(method=method, backend="exact" if looks else None))


def configured(base: Config, setting: str, variant: Variant, seed: int, data: str, epochs: int) -> Config:
    """The configuration of a run."""
    tasks = {
        name: task.model_copy(update={"weight": weight})
        for (name, task), weight in zip(base.tasks.items(), variant.weights, strict=True)
        if variant.alone in (None, name)
    }
    model = base.model.model_copy(
        update={"backbone_args": {**base.model.backbone_args, "width": 16, "features": SETTINGS[setting]}}
    )
    augment = base.augment.model_copy(update={"size_px": SIZE_PX, "eval_resize_px": SIZE_PX})
    changes = {
        "data": data,
        "seed": seed,
        "epochs": epochs,
        "global_batch": BATCH,
        "tasks": tasks,
        "model": model,
        "augment": augment,
        "balancing": variant.balancing,
    }
    return base.model_copy(update=changes)


def resident(config: Config, split: str, runtime: LocalRuntime) -> Resident:
    """Read a split through the loader of the library."""
    store = open_store(config.data)
    manifest = Manifest.load(store)
    its = DataSet("data", store, manifest, Index.load(store, split))
    order = evaluation_order(its.index.rows, config, manifest.fingerprint, split)
    specs = build_specs(config, manifest)
    batches = list(build_loader(config, specs, [its], order, range(order.steps), runtime))
    there = [batch.status == OK for batch in batches]
    return Resident(
        np.concatenate([batch.images[ok] for batch, ok in zip(batches, there, strict=True)]),
        {
            spec.name: np.concatenate([batch.labels[spec.name][ok] for batch, ok in zip(batches, there, strict=True)])
            for spec in specs
        },
    )


def batch_of(split: Resident, rows: npt.NDArray[np.int64], step: int, epoch: int) -> Batch:
    """Some rows as the loader would hand them over."""
    n = len(rows)
    labels: Any = {name: values[rows] for name, values in split.labels.items()}
    colour, status = np.ones((n, 3), np.float32), np.full(n, OK, np.uint8)
    return Batch(step, epoch, split.images[rows], labels, colour, status, 0, [], rows)


def run(config: Config, splits: dict[str, Resident], runtime: LocalRuntime) -> dict[str, Any]:
    """Train, evaluate; metrics by split and task, cost of a step, and what the balancer did."""
    manifest = Manifest.load(open_store(config.data))
    specs = build_specs(config, manifest)
    model = build_model(config, specs)
    weigher = build_weigher(config, specs, 1, runtime.device)
    precision = Precision(config.precision, runtime.device)
    train, rows = splits["train"], len(splits["train"].images)
    trainee = Trainee(
        model=model,
        parallel=model,
        optimizer=build_optimizer(model, config.optimizer),
        specs=specs,
        weigher=weigher,
        signal=signal_of(config, weigher, model, model, 1, precision.scale),
        standardise=Standardise(manifest.statistics, config.augment, runtime.device, torch.float32),
        steps_per_epoch=rows // config.global_batch,
        micro_batch=micro_batch(config, 1),
        clip_norm=None,
        frozen_batch_norm=False,
        precision=precision,
    )
    trainee.train_mode()
    wall, cpu = [list[float](), list[float]()]
    skipped = 0
    for epoch in range(config.epochs):
        order = permutation(key("overlay", config.seed, epoch), rows)
        for number in range(trainee.steps_per_epoch):
            step = epoch * trainee.steps_per_epoch + number
            at = order[number * config.global_batch : (number + 1) * config.global_batch]
            counts = torch.full((len(specs),), float(len(at)), dtype=torch.float64)
            part = (step + 0.5) / trainee.steps_per_epoch
            set_learning_rate(trainee.optimizer, config.optimizer, part, config.epochs, config.global_batch)
            began = time.perf_counter(), time.process_time()
            skipped += train_step(trainee, batch_of(train, at, step, epoch), counts, runtime.device) is None
            wall.append(time.perf_counter() - began[0])
            cpu.append(time.process_time() - began[1])
    names = [spec.name for spec in specs]
    return {
        "metrics": {split: evaluated(trainee, splits[split], runtime) for split in ("val", "test")},
        "step_cpu_ms": 1e3 * float(np.median(cpu)),
        "step_wall_ms": 1e3 * float(np.median(wall)),
        "steps": len(cpu),
        "skipped": skipped,
        "balancing": weigher.telemetry.report(names),
    }


@torch.no_grad()
def evaluated(trainee: Trainee, split: Resident, runtime: LocalRuntime) -> dict[str, dict[str, float]]:
    """Metrics of every task over a split."""
    trainee.model.eval()
    tally = Tally(trainee.specs)
    for at in range(0, len(split.images), BATCH):
        batch = batch_of(split, np.arange(at, min(at + BATCH, len(split.images))), 0, 0)
        labels = {spec.name: torch.from_numpy(batch.labels[spec.name]) for spec in trainee.specs}
        images = trainee.standardise(torch.from_numpy(batch.images), torch.from_numpy(batch.colour))
        tally.add(trainee.model(images), labels, torch.ones(len(images), dtype=torch.bool))
    return tally.metrics(runtime)


Runs = dict[tuple[str, str, int], dict[str, Any]]
"""Results by setting, variant and seed."""


def finished(out: Path) -> Runs:
    """What is there."""
    lines = out.read_text().splitlines() if out.exists() else []
    rows = [json.loads(line) for line in lines]
    return {(row["setting"], row["variant"], row["seed"]): row for row in rows}


def accuracy(runs: Runs, setting: str, variant: str, seed: int, split: str = "test") -> dict[str, float]:
    """Of each task, in percent."""
    return {task: 100 * m["accuracy"] for task, m in runs[setting, variant, seed]["metrics"][split].items()}


def interval(values: list[float]) -> str:
    """Mean and 95 % confidence interval over seeds."""
    if len(values) < 2:
        return f"{mean(values):+.1f}"
    return f"{mean(values):+.1f} ± {STUDENT[len(values) - 1] * stdev(values) / len(values) ** 0.5:.1f}"


def table(runs: Runs, setting: str) -> Iterator[str]:
    """The comparison, as Markdown: variants by mean delta-m, over the seeds that all of them have."""
    names = sorted({variant for its, variant, _ in runs if its == setting})
    seeds = [
        seed for seed in sorted({seed for _, _, seed in runs}) if all((setting, name, seed) in runs for name in names)
    ]
    tasks = [name.removeprefix("single-") for name in names if name.startswith("single-")]
    if not seeds or not tasks:
        yield f"{setting}: no seed has all variants yet, single tasks among them"
        return
    singles = {seed: {task: accuracy(runs, setting, f"single-{task}", seed)[task] for task in tasks} for seed in seeds}
    static = {
        name: mean(mean(accuracy(runs, setting, name, s, "val").values()) for s in seeds)
        for name in names
        if name.startswith("static")
    }
    tuned = max(static, key=lambda name: static[name])
    better = dict.fromkeys(tasks, True)

    def gains(name: str) -> list[float]:
        return [100 * delta_m(accuracy(runs, setting, name, seed), singles[seed], better) for seed in seeds]

    unit = gains("static")
    base = mean(runs[setting, "static", seed]["step_cpu_ms"] for seed in seeds)
    yield f"{setting}: {len(seeds)} seeds; single tasks " + ", ".join(
        f"{task} {interval([singles[seed][task] for seed in seeds])[1:]}" for task in tasks
    )
    yield ""
    yield f"| variant | {' | '.join(tasks)} | delta-m, % | against unit weights | CPU of a step, unit = 1 |"
    yield "|---|" + "---|" * (len(tasks) + 3)
    shown = [name for name in names if not name.startswith(("single-", "static-"))]
    for name in sorted([*shown, "tuned"], key=lambda name: -mean(gains(tuned if name == "tuned" else name))):
        its = tuned if name == "tuned" else name
        each = [mean(accuracy(runs, setting, its, seed)[task] for seed in seeds) for task in tasks]
        cost = mean(runs[setting, its, seed]["step_cpu_ms"] for seed in seeds) / base
        label = {"static": "unit weights", "tuned": f"tuned static ({tuned})"}.get(name, name)
        against = interval([a - b for a, b in zip(gains(its), unit, strict=True)])
        yield (
            f"| {label} | {' | '.join(f'{value:.1f}' for value in each)} | {interval(gains(its))} | {against} | "
            f"{cost:.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/overlay", help="the data set")
    parser.add_argument("--out", type=Path, default=Path("overlay.jsonl"), help="finished runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rows", type=int, default=8192, help="training pairs")
    parser.add_argument("--only", nargs="*", default=[], help="words of which setting or variant has one")
    parser.add_argument("--table", action="store_true", help="only print the comparison")
    parser.add_argument("--quick", action="store_true", help="say what a full run takes: there is no quick comparison")
    asked = parser.parse_args()
    runs = finished(asked.out)
    if asked.quick:
        say("overlay: a comparison takes about 10 CPU minutes; run it without --quick")
        return
    if not asked.table:
        base = load(RECIPE)
        runtime = LocalRuntime(gpu=False, threads=1, listen=lambda _: None)  # not entered: Ctrl-C shall end this
        every = configured(base, "overlay", Variant("static"), 0, asked.data, asked.epochs)
        splits = {split: resident(every, split, runtime) for split in ("train", "val", "test")}
        train = splits["train"]
        splits["train"] = Resident(
            train.images[: asked.rows], {name: values[: asked.rows] for name, values in train.labels.items()}
        )
        todo = [
            (setting, variant, seed)
            for seed in range(asked.seeds)
            for setting in SETTINGS
            for variant in variants(list(base.tasks))
            if not asked.only or any(word in (setting, variant.name) for word in asked.only)
        ]
        for number, (setting, variant, seed) in enumerate(todo, 1):
            if (setting, variant.name, seed) in runs:
                continue
            began = time.perf_counter()
            config = configured(base, setting, variant, seed, asked.data, asked.epochs)
            row = {"setting": setting, "variant": variant.name, "seed": seed, **run(config, splits, runtime)}
            with asked.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            runs[setting, variant.name, seed] = row
            scores = ", ".join(
                f"{task} {value:.1f}" for task, value in accuracy(runs, setting, variant.name, seed).items()
            )
            say(
                f"{number}/{len(todo)}  {setting} {variant.name} seed {seed}: {scores} "
                f"({time.perf_counter() - began:.0f} s, step {row['step_cpu_ms']:.1f} ms CPU)"
            )
    for setting in SETTINGS:
        print("\n".join(table(runs, setting)), end="\n\n")


if __name__ == "__main__":
    main()
