"""The whole table of what needs a GPU, on this machine's first one: `make bench-gpu`.

    resnet50_images_per_s      ResNet-50, 224 px, bf16, a resident batch: the best of eager and compiled
    pipeline_over_synthetic    images/s of a whole job on JPEGs at 224 px over those of a bare loop on a resident batch
                               with the same model and flags, in this process, in turns of an epoch
    cifar10_seconds_to_94      seconds of training in the real job after which the mean test accuracy over the seeds is
                               94 % or more; without it the accuracy alone is printed

    python benchmarks/gpu.py [--quick] [--only WORD] [--sample TAR] [--cifar TAR]

Without a GPU it says so and measures nothing. `--tiny` runs everything at a tiny size on the CPU, to see that it works:
its figures mean nothing.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.common import emit, say
from benchmarks.peers.images import unpack
from mtl import local
from mtl.accounting import flops_per_image, peak
from mtl.config import Augment, Config, Loader, Model, Optimizer, Order, Resources, Task
from mtl.console import RunConsole
from mtl.data.files import open_images
from mtl.data.options import Options
from mtl.data.prepare import prepare
from mtl.data.source import image_folder, shapes
from mtl.model import HeadSpec, MultiTaskModel, build_backbone
from mtl.model.sharing import PATTERNS
from mtl.optim import build_optimizer
from mtl.parts import build_model, build_specs
from mtl.runtime import LocalRuntime

GOAL = 0.94
FLAGS: dict[str, Any] = {"precision": "bf16", "compile": True}
"""How a job trains on a GPU."""


@dataclass(frozen=True)
class Size:
    """How much is measured, and where."""

    device: torch.device
    backbone: str
    size_px: int
    batch: int
    steps: int
    rounds: int
    images: int
    seeds: int
    epochs: int
    width: int

    @property
    def gpu(self) -> bool:
        """Whether the figures mean anything."""
        return self.device.type == "cuda"


def main() -> None:
    """Measure what there is a device and data for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer steps and one seed")
    parser.add_argument("--tiny", action="store_true", help="on the CPU, to see that it works")
    parser.add_argument("--only", default="", help="measure only what has this word in its name")
    parser.add_argument("--sample", type=Path, default=ROOT.parent / "shared/data/imagenet-sample.tar")
    parser.add_argument("--cifar", type=Path, default=ROOT.parent / "shared/data/cifar10.tar.xz")
    asked = parser.parse_args()
    if not (asked.tiny or torch.cuda.is_available()):
        say("There is no GPU on this machine: nothing was measured. On one that has a GPU: make bench-gpu")
        return
    size = sized(asked.tiny, asked.quick)
    say(f"on {torch.cuda.get_device_name(size.device) if size.gpu else 'the CPU: figures mean nothing'}")
    measures: dict[str, Callable[[Path, Size], None]] = {
        "resnet50_images_per_s": lambda _, size: synthetic(size),
        "pipeline_over_synthetic": lambda folder, size: pipeline(folder, size, asked.sample),
        "cifar10_seconds_to_94": lambda folder, size: cifar10(folder, size, asked.cifar),
    }
    with tempfile.TemporaryDirectory(prefix="mtl-gpu-") as scratch:
        for name, measure in measures.items():
            if asked.only in name:
                measure(Path(scratch), size)


def sized(tiny: bool, quick: bool) -> Size:
    """All sizes at once."""
    if tiny:
        return Size(torch.device("cpu"), "resnet18", 32, 16, 2, 1, 96, 1, 1, 8)
    steps, rounds, images, seeds = (50, 2, 4_096, 1) if quick else (300, 6, 20_480, 10)
    return Size(torch.device("cuda", 0), "resnet50", 224, 256, steps, rounds, images, seeds, 18, 64)


def synthetic(size: Size) -> None:
    """Forward, backward and update on a resident batch; thirty steps before do not count."""
    found: dict[str, float] = {}
    for how in ("eager", "compiled") if size.gpu else ("eager",):
        heads = HeadSpec({"class": 1000})
        model = PATTERNS["hard"](build_backbone(size.backbone, {}, size.size_px), heads).train()
        model = model.to(size.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        step = bare(model, size, compiled=how == "compiled", half=size.gpu)
        rate(step, size, max(size.steps // 10, 1))
        found[how] = rate(step, size, size.steps)
        say(f"{size.backbone} {'bf16' if size.gpu else 'fp32'} {how}: {found[how]:,.0f} images/s")
    how = max(found, key=lambda name: found[name])
    emit("gpu", "resnet50_images_per_s", found[how], f"images/s, {how}")
    most = peak(torch.cuda.get_device_name(size.device), "bf16") if size.gpu else None
    flops = flops_per_image(PATTERNS["hard"](build_backbone(size.backbone, {}, size.size_px), heads), size.size_px)
    if most and flops:
        emit("gpu", "resnet50_mfu", found[how] * flops / most, "share of the data sheet's dense bf16")


def pipeline(folder: Path, size: Size, sample: Path) -> None:
    """Epochs of a job, and after each as many steps of the bare loop; the first epoch does not count."""
    if sample.exists():
        unpack(sample, folder / "images", size.images)
        source, origin = image_folder(open_images(folder / "images"), "class"), str(sample)
        task = {"class": Task(kind="multiclass", label="class")}
    else:
        say(f"{sample} is not there: JPEGs are drawn, which are smaller than photographs")
        source, origin = shapes(size.images), "shapes"
        task = {"shape": Task(kind="multiclass", label="shape")}
    manifest = prepare(source, str(folder / "jpegs"), Options(carve=("val=0.02", "test=0.02")), origin, say)
    threads = max(torch.get_num_threads(), 1)
    config = Config(
        recipe="benchmark",
        name="pipeline",
        data=str(folder / "jpegs"),
        storage=str(folder / "runs"),
        runtime="local",
        epochs=size.rounds + 1,
        global_batch=size.batch,
        deterministic=False,
        log_every_s=1e9,
        tasks=task,
        augment=Augment(size_px=size.size_px, crop_scale=(0.08, 1.0), brightness=0.0, eval_resize_px=size.size_px),
        model=Model(backbone=size.backbone, batch_norm="local"),
        optimizer=Optimizer(name="sgd", lr=1e-3),
        order=Order(lanes=16),
        loader=Loader(threads=threads, prefetch_mb=1000),
        resources=Resources(workers=1, cpus_per_worker=threads, gpu=size.gpu),
        **(FLAGS if size.gpu else {}),
    )
    model = build_model(config, build_specs(config, manifest)).to(size.device).train()
    step = bare(model, size, compiled=size.gpu, half=size.gpu)
    steps = manifest.splits["train"].rows // size.batch
    pairs: list[tuple[float, float]] = []

    def listen(event: dict[str, Any]) -> None:
        # The loop does not count the time of its listener.
        if event["kind"] == "progress":
            pairs.append((event["images_per_s"], rate(step, size, steps)))

    with LocalRuntime(gpu=size.gpu, threads=threads, listen=listen) as runtime:
        local.lead(config, RunConsole(sys.stderr), runtime)
    ratios = [ours / base for ours, base in pairs[1:]]
    ratio, base = statistics.median(ratios), statistics.median(base for _, base in pairs[1:])
    say(f"pipeline_over_synthetic: {ratio:.3f} ({min(ratios):.3f} to {max(ratios):.3f}), {threads} decoding threads")
    emit("gpu", "pipeline_over_synthetic", ratio, f"ratio, {manifest.name}", baseline=base, ratio=ratio)


def cifar10(folder: Path, size: Size, archive: Path) -> None:
    """The recipe's two tasks on a wider net, at one schedule, for each seed: accuracy on test, and useful seconds."""
    if archive.exists():
        derive = (f"kind=object:{ROOT / 'jobs/labels/cifar10-kind.csv'}",)
        options = Options(name="cifar10", derive=derive, carve=("val=0.02",))
        prepare(image_folder(open_images(archive), "object"), str(folder / "cifar10"), options, str(archive), say)
        tasks = {
            "object": Task(kind="multiclass", label="object", label_smoothing=0.2),
            "kind": Task(kind="binary", label="kind", weight=0.1),
        }
    elif size.gpu:
        say(f"{archive} is not there: cifar10_seconds_to_94 was not measured (--cifar names a tar of CIFAR-10)")
        return
    else:
        prepare(shapes(size.images), str(folder / "cifar10"), Options(carve=("val=0.1", "test=0.1")), "shapes", say)
        tasks = {"object": Task(kind="multiclass", label="shape")}
    seconds: list[float] = []
    accuracies: list[float] = []
    for seed in range(size.seeds):
        config = Config(
            recipe="benchmark",
            name=f"cifar10-{seed}",
            data=str(folder / "cifar10"),
            storage=str(folder / "runs"),
            runtime="local",
            seed=seed,
            epochs=size.epochs,
            global_batch=512 if size.gpu else size.batch,
            deterministic=False,
            log_every_s=1e9,
            tasks=tasks,
            augment=Augment(
                size_px=32, crop="padded", crop_pad_px=4 if size.gpu else 2, brightness=0.0, eval_resize_px=32
            ),
            model=Model(backbone="mtl.model.resnet9:resnet9", backbone_args={"width": size.width}, batch_norm="local"),
            optimizer=Optimizer(
                name="sgd",
                lr=0.4,
                lr_scaling="linear",
                lr_batch=512,
                momentum=0.9,
                weight_decay=5e-4,
                warmup_epochs=0.2 * size.epochs,
                schedule="linear",
            ),
            order=Order(lanes=16, block_row_groups=None),
            loader=Loader(memory="decoded", threads=max(torch.get_num_threads(), 1)),
            resources=Resources(workers=1, gpu=size.gpu),
            **(FLAGS if size.gpu else {}),
        )
        with LocalRuntime(gpu=size.gpu, threads=torch.get_num_threads(), listen=lambda _: None) as runtime:
            result = local.lead(config, RunConsole(sys.stderr), runtime)
        seconds.append(result["useful_s"])
        accuracies.append(result["metrics"]["test"]["object"]["accuracy"])
        say(f"seed {seed}: {accuracies[-1]:.2%} after {seconds[-1]:.1f} s")
    mean = statistics.mean(accuracies)
    emit("gpu", "cifar10_accuracy", mean, f"share of test, mean of {len(accuracies)} seeds, {size.epochs} epochs")
    if mean >= GOAL:
        emit("gpu", "cifar10_seconds_to_94", statistics.mean(seconds), f"s, mean of {len(seconds)} seeds")
    else:
        say(f"cifar10_seconds_to_94: not reached; {mean:.2%} after {statistics.mean(seconds):.1f} s")


def bare(model: MultiTaskModel, size: Size, *, compiled: bool, half: bool) -> Callable[[], None]:
    """A training step as one writes it by hand, of a model with one head of classes, on a batch that is there."""
    optimizer = build_optimizer(model, Optimizer(name="sgd", lr=1e-3))
    forward: Callable[..., dict[str, torch.Tensor]] = torch.compile(model) if compiled else model
    images = torch.randn(size.batch, 3, size.size_px, size.size_px, device=size.device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(2, (size.batch,), device=size.device)

    def autocast() -> AbstractContextManager[object]:
        return torch.autocast(size.device.type, torch.bfloat16) if half else nullcontext()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            (output,) = forward(images).values()
        F.cross_entropy(output.float(), labels).backward()
        nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        optimizer.step()

    return step


def rate(step: Callable[[], None], size: Size, steps: int) -> float:
    """Images/s of some steps, the device being idle before and after."""
    wait(size)
    began = time.perf_counter()
    for _ in range(steps):
        step()
    wait(size)
    return size.batch * steps / (time.perf_counter() - began)


def wait(size: Size) -> None:
    """Until the device has done all that it was given."""
    if size.gpu:
        torch.cuda.synchronize(size.device)


if __name__ == "__main__":
    main()
