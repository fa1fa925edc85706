"""What balancing costs, and how well the boundary stands for the parameters.

    python benchmarks/balancing.py [--quick] [--methods NAME ...] [--tasks K] [--peers]

ResNet-18 on drawings of 64 px, batch norm and all. Each ratio alternates the two sides and takes medians. The
baseline is a bare step: one backward of the plain sum of the same losses, and the same optimizer. `--peers` adds
TorchJD's Jacobian descent with the same method, where it is installed.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.common import emit, say
from mtl.balancing import METHODS
from mtl.balancing.base import Needs, TaskStats
from mtl.balancing.build import build_balancer
from mtl.balancing.signals import Ranks, Signal, Weigher, build_signal
from mtl.balancing.statistic import STATISTICS, Linear, Shared, Statistic, fidelity
from mtl.data.shapes import SHAPES, draw
from mtl.model import BoundaryModel, HardSharing, HeadSpec, build_backbone

BENCH = "balancing"
REFRESH = 10
OUTPUTS = {"shape": len(SHAPES), "colour": 6, "count": 4, "rotation": 2, "touching": 2}
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


def network(tasks: int) -> BoundaryModel:
    """ResNet-18 with a linear head a task; beyond five the tasks repeat."""
    torch.manual_seed(0)
    names = list(OUTPUTS)
    outputs = {f"{names[k % 5]}_{k}" if k >= 5 else names[k]: OUTPUTS[names[k % 5]] for k in range(tasks)}
    model = HardSharing(build_backbone("resnet18", {}, 64), HeadSpec(outputs))
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
    signal = build_signal(weigher, model, model, tasks=list(model.tasks), images=data.images[:2], **how)
    return step_of(model, data, signal, weigher)


def seconds(step: Callable[[], None], times: int = 1) -> float:
    """Of one of `times` steps."""
    began = time.perf_counter()
    for _ in range(times):
        step()
    return (time.perf_counter() - began) / times


def ratio(step: Callable[[], None], base: Callable[[], None], rounds: int, times: int = 1) -> tuple[float, float]:
    """Median seconds of both, alternated."""
    seconds(step), seconds(base)
    pairs = [(seconds(step, times), seconds(base, times)) for _ in range(rounds)]
    return median(a for a, _ in pairs), median(b for _, b in pairs)


def costs(size: Size, methods: list[str], tasks: int) -> None:
    """`feature_over_sum`, `exact_over_bound`, `amortised_over_sum`: one line a method."""
    data = drawings(size.batch)
    base = bare(network(tasks), data)
    bound = (1 + 2 * tasks) / 3
    for method in methods:
        a, b = ratio(balanced(method, tasks, data, backend="boundary"), base, size.rounds)
        emit(BENCH, "feature_over_sum", a / b, f"{method}, K={tasks}", baseline=b, ratio=a / b)
        if method in ("upgrad", "mgda") or len(methods) == 1:
            a, b = ratio(balanced(method, tasks, data, backend="exact"), base, size.rounds)
            emit(BENCH, "exact_over_bound", a / b / bound, f"{method}, K={tasks}", baseline=b * bound, ratio=a / b)
            held = balanced(method, tasks, data, backend="exact", refresh_steps=REFRESH)
            a, b = ratio(held, base, max(1, size.rounds // 3), REFRESH)
            emit(BENCH, "amortised_over_sum", a / b, f"{method}, K={tasks}, every {REFRESH}", baseline=b, ratio=a / b)


CANDIDATES: dict[str, Callable[[], Statistic]] = {
    **STATISTICS,
    "linear/512": lambda: Linear(512),
}


def fidelities(size: Size) -> None:
    """`gram_fidelity` of each statistic: all labels, three in ten, each sample one label; random and trained nets."""
    model = network(5)
    for state in ("random", "trained"):
        if state == "trained":
            train(model, size)
        for share in ("all labels", "30 % of labels", "disjoint labels"):
            seen: dict[str, list[Tensor]] = {name: [] for name in CANDIDATES}
            exact: list[Tensor] = []
            for n in range(size.batches):
                z, cotangents, gram = observed(model, hidden(drawings(size.batch, 100_000 + 1000 * n), share, n))
                exact.append(gram)
                for name, make in CANDIDATES.items():
                    statistic = make()
                    seen[name].append(statistic.gram(statistic.sums(z, cotangents), [z[0].shape], len(cotangents)))
            for name, grams in seen.items():
                found = fidelity(torch.stack(grams), torch.stack(exact))
                emit(BENCH, "gram_fidelity", found, f"correlation, {name}, {share}, {state} net")


def observed(model: BoundaryModel, data: Data) -> tuple[Shared, list[Shared], Tensor]:
    """The boundary tensors, each task's cotangents at them, and the exact Gram matrix of the shared parameters."""
    shared = model.forward_shared(data.images)
    means = sums(model.forward_tasks(shared), data.labels) / counts(list(model.tasks), data.labels).clamp(min=1)
    cotangents = [torch.autograd.grad(mean, shared, retain_graph=True) for mean in means.unbind()]
    parameters, rows = model.shared_parameters(), list[Tensor]()
    for own in cotangents:
        found = torch.autograd.grad(shared, parameters, own, retain_graph=True)
        rows.append(torch.cat([part.reshape(-1) for part in found]))
    jacobian = torch.stack(rows)
    return tuple(part.detach() for part in shared), cotangents, jacobian @ jacobian.T


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
    """`exact_over_peers`: ours over the best of TorchJD's chunk sizes, with UPGrad."""
    try:
        from torchjd.aggregation import UPGrad
        from torchjd.autojac import jac_to_grad, mtl_backward

        aggregator = UPGrad()
    except ImportError as error:
        say(f"TorchJD is not there: {error}")
        return
    data = drawings(size.batch)
    ours = balanced("upgrad", tasks, data, backend="exact")
    best: tuple[float, float] | None = None
    for chunk in (1, None):
        model = network(tasks)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

        def step(model: BoundaryModel = model, optimizer: Any = optimizer, chunk: int | None = chunk) -> None:
            optimizer.zero_grad(set_to_none=True)
            features = model.backbone(data.images)
            outputs = {task: head(features) for task, head in model.heads.items()}
            losses = [loss / len(data.images) for loss in each_sum(outputs, data.labels)]
            mtl_backward(losses, features=features, parallel_chunk_size=chunk)
            jac_to_grad(model.shared_parameters(), aggregator)
            optimizer.step()

        a, b = ratio(ours, step, size.rounds)
        say(f"TorchJD with parallel_chunk_size={chunk}: {b:.3f} s, ours {a:.3f} s")
        best = (a, b) if best is None or b < best[1] else best
    assert best is not None
    emit(BENCH, "exact_over_peers", best[0] / best[1], f"upgrad, K={tasks}", baseline=best[1], ratio=best[0] / best[1])


def main() -> None:
    """Parse, measure."""
    looks = [name for name in METHODS if Needs.GRAM in build_balancer(name, 2, 0).needs]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="end within a minute")
    parser.add_argument("--methods", nargs="*", default=None, choices=looks, help="methods to time")
    parser.add_argument("--tasks", type=int, default=5, help="K")
    parser.add_argument("--peers", action="store_true", help="time TorchJD too")
    parser.add_argument("--no-fidelity", action="store_true", help="leave gram_fidelity out")
    arguments = parser.parse_args()
    size = QUICK if arguments.quick else FULL
    usual = ["upgrad", "nash-mtl", "norm"] if arguments.quick else looks
    methods = usual if arguments.methods is None else arguments.methods
    costs(size, methods, arguments.tasks)
    if arguments.peers:
        peers(size, arguments.tasks)
    if not arguments.no_fidelity:
        fidelities(size)


if __name__ == "__main__":
    main()
