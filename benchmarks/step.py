"""What does a step cost with 5 or 40 heads in place of one, with the fused optimizer, with other sharing patterns?

ResNet-18 at 64 px, two cores. A step is forward, a cross-entropy for each task over 10 classes, backward and SGD with
momentum. The variants take turns within each round, so that a busy machine slows all of them; ratios are medians of
the rounds' ratios. The parts `heads` leave out what is the same for all: features are given. Each metric has a line for
wall time and, named NAME_cpu, one for the CPU time of all threads, which is the steadier of the two where others are at
work too (with one thread: threads that wait for each other count).

    python benchmarks/step.py [--quick] [--only WORD] [--threads N] [--rounds N]
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.common import emit
from mtl.config import Optimizer
from mtl.model import PATTERNS, HeadSpec, MultiTaskModel, build_backbone
from mtl.model.heads import Heads
from mtl.optim import build_optimizer

CLASSES = 10
_ARGUMENTS: dict[str, dict[str, object]] = {
    "hard": {},
    "split": {"stage": "layer4"},
    "mmoe": {"experts": 4, "expert_width": 256},
    "cgc": {"experts": 2, "task_experts": 1, "expert_width": 256},
    "ple": {"experts": 2, "task_experts": 1, "expert_width": 256, "levels": 2},
    "mtan": {},
    "cross-stitch": {},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="", help="measure only what has this word in its name")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=None)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    rounds = asked.rounds or (9 if asked.quick else 41)
    for name, measure in {"heads": heads, "step": steps, "optimizer": optimizers, "sharing": patterns}.items():
        if asked.only in name:
            measure(rounds)


def steps(rounds: int, samples: int = 32) -> None:
    """Whole steps."""
    images = torch.randn(samples, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (samples,))
    found = alternate({tasks: _step(_model(tasks), images, labels) for tasks in (1, 5, 40)}, rounds)
    _compare("step", found, {"five_over_one": (5, 1), "forty_over_one": (40, 1)})


def heads(rounds: int, samples: int = 32) -> None:
    """Heads and losses alone, computed together and one by one."""
    features, labels = torch.randn(samples, 512, requires_grad=True), torch.randint(CLASSES, (samples,))

    def together(made: Heads) -> None:
        _loss(made(features), labels).backward()

    def apart(made: Heads) -> None:
        _loss({task: made.one(task, features) for task in made}, labels).backward()

    variants: dict[object, Callable[[], None]] = {}
    for tasks in (5, 40):
        made = _heads(tasks).build(512)
        variants[tasks, "together"] = lambda made=made: together(made)
        variants[tasks, "apart"] = lambda made=made: apart(made)
    found = alternate(variants, rounds * 10)
    pairs = {f"heads_{n}_together_over_apart": ((n, "together"), (n, "apart")) for n in (5, 40)}
    _compare("step", found, pairs)


def optimizers(rounds: int) -> None:
    """Updates alone, fused and as torch does by default on a CPU."""
    for name in ("sgd", "adam", "adamw"):
        variants: dict[object, Callable[[], None]] = {}
        for fused in (True, False):
            model = _model(5)
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer = build_optimizer(model, Optimizer(name=name, weight_decay=1e-4, lr=1e-6))
            if not fused:
                for group in optimizer.param_groups:
                    group.update(fused=None, foreach=None)
            variants[fused] = optimizer.step
        _compare("step", alternate(variants, rounds * 3), {f"{name}_fused_over_default": (True, False)})


def patterns(rounds: int, samples: int = 32, tasks: int = 3) -> None:
    """Whole steps of each sharing pattern, for three tasks, against hard sharing."""
    images = torch.randn(samples, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (samples,))
    variants = {name: _step(_model(tasks, name, **given), images, labels) for name, given in _ARGUMENTS.items()}
    found = alternate(variants, max(rounds // 3, 3))
    _compare("step", found, {f"{name}_over_hard": (name, "hard") for name in _ARGUMENTS if name != "hard"})


Times = dict[object, list[tuple[float, float]]]
"""Seconds of each variant in each round: on the wall, and of CPU time."""


def alternate(variants: Mapping[object, Callable[[], object]], rounds: int) -> Times:
    """Time each variant once a round, after two rounds that do not count."""
    found: Times = {name: [] for name in variants}
    for number in range(rounds + 2):
        for name, run in variants.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            if number >= 2:
                found[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return found


def _compare(bench: str, found: Times, pairs: Mapping[str, tuple[object, object]]) -> None:
    for metric, (one, other) in pairs.items():
        for clock, suffix in enumerate(("", "_cpu")):
            a, b = ([times[clock] for times in found[name]] for name in (one, other))
            ratio = statistics.median(x / y for x, y in zip(a, b, strict=True))
            value, baseline = 1e3 * statistics.median(a), 1e3 * statistics.median(b)
            emit(bench, metric + suffix, round(value, 4), "ms", baseline=round(baseline, 4), ratio=round(ratio, 4))


def _heads(tasks: int) -> HeadSpec:
    return HeadSpec({f"task{number}": CLASSES for number in range(tasks)})


def _model(tasks: int, pattern: str = "hard", **given: object) -> MultiTaskModel:
    model = PATTERNS[pattern](build_backbone("resnet18", {}, 64), _heads(tasks), **given)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _step(model: MultiTaskModel, images: Tensor, labels: Tensor) -> Callable[[], None]:
    optimizer = build_optimizer(model, Optimizer(name="sgd", lr=1e-4))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        _loss(model(images), labels).backward()
        optimizer.step()

    return step


def _loss(outputs: Mapping[str, Tensor], labels: Tensor) -> Tensor:
    return torch.stack([F.cross_entropy(output, labels, reduction="sum") for output in outputs.values()]).sum()


if __name__ == "__main__":
    main()
