"""What balancing costs, and how well the boundary stands for the parameters.

    python benchmarks/balancing.py [--quick] [--only costs peers fidelity] [--methods NAME ...] [--tasks K]

ResNet-18 on drawings of 64 px, batch norm and all. The sides of a ratio take turns, and medians are taken, of wall time
and, in lines named METRIC_cpu, of the CPU time of all threads, which is the steadier of the two where others are at
work. The baseline is a bare step: one backward of the plain sum of the same losses, and the same optimizer. `peers`
takes the Jacobian as LibMTL does, and with TorchJD where it is installed, at the same method.
"""

import argparse
import resource
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.common import emit, say
from benchmarks.peers.jacobians import backwards
from mtl.balancing import METHODS
from mtl.balancing.base import Needs, TaskStats
from mtl.balancing.build import build_balancer
from mtl.balancing.signals import Ranks, Signal, Weigher, build_signal
from mtl.balancing.statistic import STATISTICS, Joint, Linear, Shared, Statistic, fidelity
from mtl.data.shapes import SHAPES, draw
from mtl.model import BoundaryModel, HardSharing, HeadSpec, build_backbone

BENCH, OURS = "balancing", "ours"
REFRESH = 10
OUTPUTS = {"shape": len(SHAPES), "colour": 6, "count": 4, "rotation": 2, "touching": 2}
NETS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet18": ("resnet18", {}),
    "resnet9": ("mtl.model.resnet9:resnet9", {"width": 16}),
}
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    batch: int
    rounds: int
    batches: int  # of a fidelity
    trained: int  # steps before the net counts as trained


FULL = Size(batch=64, rounds=7, batches=12, trained=150)
QUICK = Size(batch=16, rounds=3, batches=3, trained=10)


@dataclass(frozen=True)
class Data:
    """Images [n, 3, 64, 64], and class ids or angles [n] of each task, -1 or NaN where missing."""

    images: Tensor
    labels: dict[str, Tensor]

    def part(self, at: slice) -> "Data":
        """Some samples."""
        return Data(self.images[at], {task: labels[at] for task, labels in self.labels.items()})


def drawings(n: int, first: int = 0) -> Data:
    """Samples with every label."""
    made = [draw(first + index, size_px=64) for index in range(n)]
    images = torch.stack([torch.from_numpy(one.image) for one in made]).permute(0, 3, 1, 2).float() / 127.5 - 1
    labels: dict[str, Tensor] = {}
    for task in OUTPUTS:
        truth = [one.truth[task] for one in made]
        labels[task] = torch.tensor([torch.nan if value is None else float(value) for value in truth])
    return Data(images.contiguous(memory_format=torch.channels_last), labels)


def each_sum(outputs: dict[str, Tensor], labels: dict[str, Tensor]) -> list[Tensor]:
    """Sums of losses over valid labels, K scalars."""
    made: list[Tensor] = []
    for task, output in outputs.items():
        label = labels[task.partition("_")[0]]
        there = ~label.isnan()
        known = label.nan_to_num()
        if task.startswith("rotation"):
            each = 0.5 * (output - torch.stack([known.sin(), known.cos()], 1)).square().sum(1)
        else:
            each = F.cross_entropy(output, known.long(), reduction="none")
        made.append(torch.where(there, each, 0.0).sum())
    return made


def sums(outputs: dict[str, Tensor], labels: dict[str, Tensor]) -> Tensor:
    """The same as one tensor, [K]."""
    return torch.stack(each_sum(outputs, labels))


def counts(outputs: list[str], labels: dict[str, Tensor]) -> Tensor:
    """Valid labels, [K]."""
    return torch.stack([(~labels[task.partition("_")[0]].isnan()).sum() for task in outputs]).double()


def network(tasks: int, net: str = "resnet18") -> BoundaryModel:
    """One of NETS with a linear head a task; beyond five the tasks repeat."""
    torch.manual_seed(0)
    names = list(OUTPUTS)
    outputs = {f"{names[k % 5]}_{k}" if k >= 5 else names[k]: OUTPUTS[names[k % 5]] for k in range(tasks)}
    model = HardSharing(build_backbone(*NETS[net], 64), HeadSpec(outputs))
    return model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]


def weigher_of(balancer: Any, tasks: int) -> Weigher:
    return Weigher(balancer, [1.0] * tasks, ("multiclass",) * tasks, Ranks(1, CPU))


def step_of(model: BoundaryModel, data: Data, signal: Signal, weigher: Weigher) -> Callable[[], None]:
    """A step through a signal."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    tasks, number = list(model.tasks), 0

    def step() -> None:
        nonlocal number
        optimizer.zero_grad(set_to_none=True)
        signal.begin(TaskStats(counts(tasks, data.labels), number))
        signal.backward(sums(signal.forward(data.images), data.labels), True)
        stats = signal.end()
        optimizer.step()
        weigher.learn(stats, None)
        number += 1

    return step


def bare(model: nn.Module, data: Data) -> Callable[[], None]:
    """A step of the plain sum."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        (sums(model(data.images), data.labels).sum() / len(data.images)).backward()
        optimizer.step()

    return step


def balanced(method: str, tasks: int, data: Data, **how: Any) -> Callable[[], None]:
    """A step with a method."""
    model = network(tasks)
    weigher = weigher_of(build_balancer(method, tasks, 0), tasks)
    signal = build_signal(
        weigher, model, model, tasks=list(model.tasks), images=data.images[:2], batch_norm=True, **how
    )
    return step_of(model, data, signal, weigher)


Clock = tuple[float, float]
"""Seconds on the wall, and of CPU time over all threads."""


def timed(step: Callable[[], object]) -> Clock:
    """Of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - wall, time.process_time() - cpu


def alternated(steps: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[Clock]]:
    """Times of each of `steps`, which take turns, after one call that does not count."""
    for name, step in steps.items():
        say(f"  warm {name}: {timed(step)[1]:.2f} s CPU")
    found: dict[str, list[Clock]] = {name: [] for name in steps}
    for number in range(rounds):
        for name, step in steps.items():
            found[name].append(timed(step))
        say(f"  round {number + 1}/{rounds}")
    return found


def compare(metric: str, unit: str, value: list[Clock], baseline: list[Clock], bound: float = 1.0) -> None:
    """One line for wall time and one, METRIC_cpu, for CPU time: the median of the rounds' ratios, over `bound`."""
    for clock, suffix in enumerate(("", "_cpu")):
        a, b = ([one[clock] for one in times] for times in (value, baseline))
        ratio = median(x / y for x, y in zip(a, b, strict=True)) / bound
        emit(BENCH, metric + suffix, ratio, unit, baseline=median(b) * bound, ratio=ratio)


def costs(size: Size, methods: list[str], tasks: int) -> None:
    """`feature_over_sum`, `exact_over_bound`, `amortised_over_sum`: one line a method, and one for CPU time."""
    data = drawings(size.batch)
    bound = (1 + 2 * tasks) / 3
    for method in methods:
        say(f"{method}, K={tasks}, batch {size.batch}")
        steps = {"sum": bare(network(tasks), data), "boundary": balanced(method, tasks, data, backend="boundary")}
        looks_closer = method in ("upgrad", "mgda") or len(methods) == 1
        if looks_closer:
            steps["exact"] = balanced(method, tasks, data, backend="exact")
        found = alternated(steps, size.rounds)
        compare("feature_over_sum", f"{method}, K={tasks}", found["boundary"], found["sum"])
        if looks_closer:
            compare("exact_over_bound", f"{method}, K={tasks}", found["exact"], found["sum"], bound)
            amortised(size, method, tasks, data)


def amortised(size: Size, method: str, tasks: int, data: Data) -> None:
    """`amortised_over_sum`: cycles of one exact step and those that hold its weights, each beside a plain step."""
    held, base = balanced(method, tasks, data, backend="exact", refresh_steps=REFRESH), bare(network(tasks), data)
    base()
    cycles: list[tuple[Clock, Clock]] = []
    for number in range(max(2, size.rounds // 3 + 1)):
        pairs = [(timed(held), timed(base)) for _ in range(REFRESH)]
        cycles.append((total([a for a, _ in pairs]), total([b for _, b in pairs])))
        say(f"  cycle {number + 1} of {REFRESH} steps")
    a, b = ([cycle[side] for cycle in cycles[1:]] for side in (0, 1))
    compare("amortised_over_sum", f"{method}, K={tasks}, every {REFRESH}", a, b)


def total(times: list[Clock]) -> Clock:
    """The sum of some times."""
    return sum(wall for wall, _ in times), sum(cpu for _, cpu in times)


CANDIDATES: dict[str, Callable[[], Statistic]] = {
    **STATISTICS,
    "linear, not centred": lambda: Linear(centred=False),
    "joint, for batch norm": lambda: Joint(batch_norm=True),
}


def fidelities(size: Size) -> None:
    """`gram_fidelity` of each statistic: all labels, three in ten, each sample one label; random and trained nets.

    `layers_fidelity` is the same of the exact gradients of the layers next to the boundary alone, so of more than what
    is known at the boundary.
    """
    for net in NETS:
        model = network(5, net)
        for state in ("random", "trained"):
            if state == "trained":
                train(model, size)
            for share in ("all labels", "30 % of labels", "disjoint labels"):
                fidelity_of(model, size, share, f"{share}, {state} {net}")


def fidelity_of(model: BoundaryModel, size: Size, share: str, where: str) -> None:
    """Over all batches, with these labels."""
    seen: dict[str, list[Tensor]] = {name: [] for name in CANDIDATES}
    exact: list[Tensor] = []
    for n in range(size.batches):
        z, cotangents, layers = observed(model, hidden(drawings(size.batch, 100_000 + 1000 * n), share, n))
        exact.append(layers)
        for name, make in CANDIDATES.items():
            statistic = make()
            seen[name].append(statistic.gram(statistic.sums(z, cotangents), [z[0].shape], len(cotangents)))
    by_layer = torch.stack(exact, 1)
    whole = by_layer.sum(0)
    for name, grams in seen.items():
        emit(BENCH, "gram_fidelity", fidelity(torch.stack(grams), whole), f"correlation, {name}, {where}")
    for last in (n for n in (1, 2, 4, 8, 16) if n < len(by_layer)):
        found = fidelity(by_layer[-last:].sum(0), whole)
        emit(BENCH, "layers_fidelity", found, f"correlation, last {last} of {len(by_layer)} layers, {where}")


def observed(model: BoundaryModel, data: Data) -> tuple[Shared, list[Shared], Tensor]:
    """The boundary tensors, each task's cotangents at them, and the exact Gram matrices [layers, K, K] of the shared
    parameters: a layer is a convolution with the norm behind it."""
    shared = model.forward_shared(data.images)
    means = sums(model.forward_tasks(shared), data.labels) / counts(list(model.tasks), data.labels).clamp(min=1)
    cotangents = [torch.autograd.grad(mean, shared, retain_graph=True) for mean in means.unbind()]
    parameters = model.shared_parameters()
    rows = [torch.autograd.grad(shared, parameters, own, retain_graph=True) for own in cotangents]
    layers: list[Tensor] = []
    for parameter, parts in zip(parameters, zip(*rows, strict=True), strict=True):
        jacobian = torch.stack([part.reshape(-1) for part in parts])
        gram = jacobian @ jacobian.T
        if parameter.dim() > 1:
            layers.append(gram)
        else:
            layers[-1] += gram
    return tuple(part.detach() for part in shared), cotangents, torch.stack(layers)


def train(model: BoundaryModel, size: Size) -> None:
    """Plain training on drawings of its own."""
    data = drawings(min(size.batch * size.trained, 2048), 10_000)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for number in range(size.trained):
        at = number * size.batch % len(data.images)
        one = data.part(slice(at, at + size.batch))
        optimizer.zero_grad()
        (sums(model(one.images), one.labels).sum() / size.batch).backward()
        optimizer.step()


def hidden(data: Data, share: str, seed: int) -> Data:
    """Some labels removed."""
    draws = torch.Generator().manual_seed(seed)
    n = len(data.images)
    owner = torch.arange(n) % len(OUTPUTS)
    labels: dict[str, Tensor] = {}
    for k, (task, label) in enumerate(data.labels.items()):
        gone = owner != k if share.startswith("disjoint") else torch.rand(n, generator=draws) > 0.3
        labels[task] = label if share.startswith("all") else torch.where(gone, torch.nan, label)
    return Data(data.images, labels)


def peers(size: Size, tasks: int) -> None:
    """`exact_over_peers`: ours over the fastest of LibMTL's way and TorchJD's chunk sizes, all with UPGrad; and
    `exact_over_peers_memory`, ours over the leanest."""
    makers = sides(size.batch, tasks)
    names = [name for name in makers if name != OURS]
    say(f"peers, K={tasks}, batch {size.batch}: {', '.join(names)}")
    peaks: dict[str, int] = {}
    for name in makers:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            peaks[name] = pool.submit(peak_bytes, size.batch, tasks, name, torch.get_num_threads()).result()
        say(f"  {name}: {peaks[name] / 2**20:.0f} MiB")
    found = alternated({name: make() for name, make in makers.items()}, size.rounds)
    for name in makers:
        say(f"  {name}: {median(c for _, c in found[name]):.2f} s CPU")
    best = min(names, key=lambda name: median(cpu for _, cpu in found[name]))
    compare("exact_over_peers", f"upgrad, K={tasks}, best peer: {best}", found[OURS], found[best])
    lean = min(names, key=lambda name: peaks[name])
    ratio = peaks[OURS] / peaks[lean]
    emit(BENCH, "exact_over_peers_memory", ratio, f"peak bytes, K={tasks}, {lean}", baseline=peaks[lean], ratio=ratio)


def sides(batch: int, tasks: int) -> dict[str, Callable[[], Callable[[], object]]]:
    """By name, ours among them, what builds a step."""
    data = drawings(batch)

    def peer(name: str) -> Callable[[], object]:
        model = network(tasks)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        n = len(data.images)
        losses = lambda outputs: [loss / n for loss in each_sum(outputs, data.labels)]  # noqa: E731
        backward = backwards(model, data.images, losses, build_balancer("upgrad", tasks, 0))[name]

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            backward()
            optimizer.step()

        return step

    names = list(backwards(network(tasks), data.images, lambda _: [], build_balancer("upgrad", tasks, 0)))
    ours = partial(balanced, "upgrad", tasks, data, backend="exact")
    return {OURS: ours, **{name: partial(peer, name) for name in names}}


def peak_bytes(batch: int, tasks: int, name: str, threads: int) -> int:
    """What building and two steps add to the memory of this process, a fresh one, at their peak."""
    torch.set_num_threads(threads)
    make = sides(batch, tasks)[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    step = make()
    step(), step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def main() -> None:
    """Parse, measure."""
    looks = [name for name in METHODS if Needs.GRAM in build_balancer(name, 2, 0).needs]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="end within a minute")
    parser.add_argument("--only", nargs="*", choices=("costs", "peers", "fidelity"), help="parts; all but peers")
    parser.add_argument("--methods", nargs="*", default=None, choices=looks, help="methods to time")
    parser.add_argument("--tasks", type=int, default=5, help="K")
    parser.add_argument("--batch", type=int, default=None, help="samples of a step")
    parser.add_argument("--rounds", type=int, default=None, help="turns that each side takes")
    parser.add_argument("--threads", type=int, default=2, help="of torch; CPU times are steadiest with one")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    size = QUICK if arguments.quick else FULL
    size = replace(size, batch=arguments.batch or size.batch, rounds=arguments.rounds or size.rounds)
    usual = ["upgrad", "nash-mtl", "norm"] if arguments.quick else looks
    methods = usual if arguments.methods is None else arguments.methods
    parts = arguments.only or ("costs", "fidelity")
    if "costs" in parts:
        costs(size, methods, arguments.tasks)
    if "peers" in parts:
        peers(size, arguments.tasks)
    if "fidelity" in parts:
        fidelities(size)


if __name__ == "__main__":
    main()
