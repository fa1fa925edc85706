"""The training loop, to be read downward: a step, a run of steps with commits and evaluations, an evaluation.

Every mean is exact. The valid labels of each global batch are counted over all ranks before its forward; a rank's
share of task k's loss is (its sum of losses) * W / (global count), because DistributedDataParallel averages the W
gradients. The counts travel one step ahead of their use, together with the flags on which ranks must agree (stop,
commit, log), so that nothing waits for them.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mtl.agreement import Every, agreed_batches
from mtl.balancing import TaskStats
from mtl.config import Config
from mtl.data.colour import Standardise
from mtl.data.keyed import key
from mtl.data.loader import EMPTY, Batch, Loader
from mtl.errors import DataError, MtlError
from mtl.optim import learning_rate
from mtl.runtime import Runtime
from mtl.tasks import TaskSpec
from mtl.trainee import Position, RunningStatistics, Trainee, settle

BAD_STEPS = 10
"""Consecutive steps without a finite gradient after which training stops."""


@dataclass
class Window:
    """Losses and times since the last progress line; losses are this rank's sums until they are reduced."""

    losses: Tensor
    counts: Tensor
    samples: int = 0
    waited_s: float = 0.0
    began: float = field(default_factory=time.perf_counter)


def train_step(trainee: Trainee, batch: Batch, counts: Tensor, world_size: int, device: torch.device) -> Tensor | None:
    """Forward, backward and update on one global batch.

    Args:
        counts: valid labels of the global batch, float64 [K].

    Returns:
        This rank's sums of losses, float64 [K] on the device; None when a gradient was not finite, and then neither
        parameters nor running statistics have changed. Gradients are equal on all ranks, so all of them skip together.
    """
    model, optimizer = trainee.parallel, trainee.optimizer
    weights = trainee.balancer.weights(TaskStats(counts, batch.step)).to(device)
    share = weights.double() * world_size / counts.clamp(min=1).to(device)
    images, labels = torch.from_numpy(batch.images), _labels(batch, device)
    colour = torch.from_numpy(batch.colour)
    statistics = RunningStatistics(trainee.model)
    losses = torch.zeros(len(trainee.specs), dtype=torch.float64, device=device)

    optimizer.zero_grad(set_to_none=True)
    parts = range(0, len(images), trainee.micro_batch)
    for start in parts:
        part = slice(start, start + trainee.micro_batch)
        last = start == parts[-1]
        with nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync():
            outputs = model(trainee.standardise(images[part].to(device), colour[part].to(device)))
            sums = torch.stack([spec.loss(outputs[spec.name], labels[spec.name][part]) for spec in trainee.specs])
            loss = (sums * share.to(sums.dtype)).sum()
            # Times one; but a loss that is not finite gets a gradient that is not, so that every rank hears of it.
            (loss * (1 + 0 * loss.detach())).backward()
            losses += sums.detach().double()
        statistics.gather(len(images[part]) / len(images))

    trained = [p for p in trainee.model.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
    if not bool(norm.isfinite()):
        statistics.undo()
        return None
    if trainee.clip_norm is not None:
        nn.utils.clip_grads_with_norm_(trained, trainee.clip_norm, norm)
    optimizer.step()
    statistics.keep()
    return losses


def train(
    config: Config,
    trainee: Trainee,
    position: Position,
    loader: Loader,
    runtime: Runtime,
    *,
    commit: Callable[[Position], None],
    record: Callable[[dict[str, Any]], None],
    at_epoch_end: Callable[[int], None],
) -> bool:
    """Train from `position` to the end of the last epoch, or until a stop is agreed on.

    Args:
        commit: makes the state at a position durable; called by every rank, at the same step.
        record: receives one row of metrics for each progress line, on rank 0.
        at_epoch_end: called by every rank with the number of epochs done.

    Returns:
        Whether training is complete.
    """
    specs, device = trainee.specs, runtime.device
    steps, first, committed_step = trainee.steps_per_epoch * config.epochs, position.step, position.step
    window = _window(len(specs), device)
    began, commit_due, log_due = time.perf_counter(), Every(config.checkpoint.every_s), Every(config.log_every_s)
    batches = agreed_batches(
        loader,
        specs,
        runtime,
        stop=runtime.stop_requested,
        commit=commit_due,
        log=log_due,
    )
    settle(trainee, loader.size_px, device)
    trainee.train_mode()

    for batch, agreed, waited_s in batches:
        if (agreed.stop or agreed.commit) and position.step != committed_step:
            commit(position)
            committed_step = position.step
        if agreed.stop:
            return False
        epoch = (position.step + 0.5) / trainee.steps_per_epoch
        rate = learning_rate(config.optimizer, epoch, config.epochs)
        for group in trainee.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(key("step", config.seed, batch.step, runtime.rank) >> 1)

        losses = train_step(trainee, batch, agreed.counts, runtime.world_size, device)

        if losses is None:
            _skipped(trainee, position, batch, runtime)
        else:
            trainee.bad_in_a_row = 0
            window.losses += losses
            window.counts += agreed.counts
        position.step += 1
        position.ledger = (position.ledger + batch.ledger) % 2**64
        position.quarantined += agreed.quarantined
        window.samples += agreed.samples
        window.waited_s += waited_s
        _check_budget(position, batch, config, trainee)

        done = position.step % trainee.steps_per_epoch == 0
        if agreed.log or done:
            row = _progress(window, position, steps, rate, trainee, runtime)
            record(row)
            eta_s = (time.perf_counter() - began) * (steps - position.step) / (position.step - first)
            runtime.emit({"kind": "progress", "eta_s": eta_s, **row})
            window = _window(len(specs), device)
        if done:
            at_epoch_end(position.step // trainee.steps_per_epoch)
            commit(position)
            committed_step = position.step
            commit_due.restart()
            trainee.train_mode()
            window = _window(len(specs), device)
    return True


@torch.no_grad()
def evaluate(
    model: nn.Module, specs: list[TaskSpec], loader: Loader, standardise: Standardise, runtime: Runtime, rows: int
) -> dict[str, dict[str, float]]:
    """Metrics per task over a whole split, every row counted once whatever the number of workers.

    Returns:
        Per task: its metrics, its loss, and `labels`, the number of rows that had one.

    Raises:
        DataError: the rows counted are not the `rows` of the split.
    """
    model.eval()
    device = runtime.device
    sums: dict[str, Tensor] = {}

    def add(name: str, value: Tensor) -> None:
        sums[name] = sums[name] + value if name in sums else value

    for batch in loader:
        outputs = model(
            standardise(torch.from_numpy(batch.images).to(device), torch.from_numpy(batch.colour).to(device))
        )
        labels = _labels(batch, device)
        for spec in specs:
            output, label = outputs[spec.name], labels[spec.name]
            add(f"{spec.name}/labels", spec.valid(label).sum())
            add(f"{spec.name}/loss", spec.loss(output, label).double())
            for name, value in spec.tally(output, label).items():
                add(f"{spec.name}/{name}", value)
        status = torch.from_numpy(batch.status)
        add("rows", (status != EMPTY).sum())
    flat = runtime.sum(torch.cat([value.double().reshape(-1).cpu() for value in sums.values()]))
    for name, part in zip(sums, flat.split([value.numel() for value in sums.values()]), strict=True):
        sums[name] = part.view(sums[name].shape)
    if int(sums["rows"]) != rows:
        raise DataError("Evaluation did not count every row once.", got=f"{int(sums['rows'])} rows", expected=rows)
    result: dict[str, dict[str, float]] = {}
    for spec in specs:
        own = {name.partition("/")[2]: value for name, value in sums.items() if name.startswith(f"{spec.name}/")}
        count = int(own["labels"])
        result[spec.name] = {**spec.summary(own), "loss": own["loss"].item() / max(count, 1), "labels": count}
    return result


def _labels(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    return {name: torch.from_numpy(values).to(device) for name, values in batch.labels.items()}


def _window(tasks: int, device: torch.device) -> Window:
    return Window(torch.zeros(tasks, dtype=torch.float64, device=device), torch.zeros(tasks, dtype=torch.float64))


def _progress(
    window: Window, position: Position, steps: int, rate: float, trainee: Trainee, runtime: Runtime
) -> dict[str, Any]:
    seconds = time.perf_counter() - window.began
    losses = runtime.sum(window.losses.cpu()) / window.counts.clamp(min=1)
    return {
        "step": position.step,
        "steps": steps,
        "epoch": position.step / trainee.steps_per_epoch,
        "lr": rate,
        "loss": dict(zip((spec.name for spec in trainee.specs), losses.tolist(), strict=True)),
        "images_per_s": window.samples / seconds,
        "data_wait": window.waited_s / seconds,
        "skipped": position.skipped,
        "quarantined": position.quarantined,
    }


def _skipped(trainee: Trainee, position: Position, batch: Batch, runtime: Runtime) -> None:
    position.skipped += 1
    trainee.bad_in_a_row += 1
    runtime.emit({"kind": "note", "text": f"step {batch.step}: a gradient is not finite; the step is skipped"})
    if trainee.bad_in_a_row >= BAD_STEPS:
        raise MtlError(
            f"Training diverged: {BAD_STEPS} steps in a row had no finite gradient.",
            got=f"step {batch.step}",
            do="lower optimizer.lr, or set optimizer.clip_norm; the last commit is from before these steps",
        )


def _check_budget(position: Position, batch: Batch, config: Config, trainee: Trainee) -> None:
    seen = position.step * config.global_batch
    allowed = config.loader.error_budget * max(seen, trainee.steps_per_epoch * config.global_batch)
    if position.quarantined > allowed:
        bad = (
            f"{batch.bad[0].shard}, row {batch.bad[0].row}: {batch.bad[0].reason}" if batch.bad else "on another worker"
        )
        raise DataError(
            "Too many images can not be decoded.",
            got=f"{position.quarantined} of {seen} samples; the last: {bad}",
            expected=f"at most a share of {config.loader.error_budget} (loader.error_budget)",
            do="mend the data set (jobs/prepare.py checks every image), or raise the budget",
        )
