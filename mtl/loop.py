"""The training loop, to be read downward: a step, a run of steps with commits and evaluations, an evaluation.

Every mean is exact. The valid labels of each global batch are counted over all ranks before its forward, each with its
weight; a rank's share of task k's loss is (its sum of losses) * W / (global count), because DistributedDataParallel
averages the W gradients. How losses are weighed, and from what, is the signal's business (mtl/balancing/signals). The
counts travel one step ahead of their use, together with the flags on which ranks must agree (stop, commit, log), so
that nothing waits for them.
"""

import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mtl.agreement import Batches, Every, agreed_batches, divisor, own_counts, present
from mtl.balancing.base import Needs, TaskStats
from mtl.balancing.telemetry import overlap, together
from mtl.blame import Sums, ceilings, machine, verdict
from mtl.budget import check_budget
from mtl.config import Config
from mtl.data.batch import OK, QUARANTINED, Batch
from mtl.data.colour import Standardise
from mtl.data.keyed import key
from mtl.errors import DataError
from mtl.optim import set_learning_rate
from mtl.precision import Precision
from mtl.rewind import BAD_STEPS, Rewind
from mtl.runtime import Runtime
from mtl.tally import Tally
from mtl.tasks import TaskSpec
from mtl.trainee import Position, Randomness, RunningStatistics, Streak, Trainee, settle


@dataclass
class Window:
    """Losses and times since the last progress line; losses are this rank's sums until they are reduced.

    together: this rank's samples with labels of both tasks, float64 [K, K].
    """

    losses: Tensor
    counts: Tensor
    together: Tensor
    samples: int = 0
    waits: Sums = field(default_factory=Sums)
    began: float = field(default_factory=time.perf_counter)


def train_step(trainee: Trainee, batch: Batch, counts: Tensor, device: torch.device) -> Tensor | None:
    """Forward, backward and update on one global batch.

    Args:
        counts: valid labels of the global batch, or the sum of their weights, float64 [K].

    Returns:
        This rank's sums of losses, float64 [K] on the device; None when a gradient was not finite, and then neither
        parameters nor running statistics nor the balancer have changed. Gradients and statistics are equal on all
        ranks, so all of them skip together.
    """
    parallel, optimizer, signal = trainee.parallel, trainee.optimizer, trainee.signal
    inputs, n = trainee.inputs(batch, device), len(batch.images)
    statistics = RunningStatistics(trainee.model)
    losses = torch.zeros(len(trainee.specs), dtype=torch.float64, device=device)
    parts = [slice(at, at + trainee.micro_batch) for at in range(0, n, trainee.micro_batch)]
    randomness = Randomness(device) if Needs.POST_STEP_LOSSES in trainee.weigher.needs else None

    def sums(part: slice, forward: Callable[[Tensor], dict[str, Tensor]]) -> Tensor:
        outputs = trainee.precision.apply(forward, inputs.images(part))
        return inputs.losses(trainee.specs, outputs, part)

    optimizer.zero_grad(set_to_none=True)
    own = partial(own_counts, trainee.specs, batch)
    signal.begin(TaskStats(counts, batch.step, epoch=batch.epoch, device=device, own_counts=own))
    for part in parts:
        last = part is parts[-1]
        with nullcontext() if last or not isinstance(parallel, DistributedDataParallel) else parallel.no_sync():
            its_losses = sums(part, signal.forward)
            signal.backward(its_losses, last)
            losses += its_losses.detach().double()
        statistics.gather(len(range(n)[part]) / n)
    stats = signal.end()
    trainee.copied_s = inputs.copied_s

    trained = [p for p in trainee.model.parameters() if p.grad is not None]
    gradients = [p.grad for p in trained if p.grad is not None]
    trainee.precision.unscale(gradients)
    norm = nn.utils.get_total_norm(gradients)
    if not bool(norm.isfinite() & stats.finite()):
        statistics.undo()
        return None
    if trainee.clip_norm is not None:
        nn.utils.clip_grads_with_norm_(trained, trainee.clip_norm, norm)
    optimizer.step()
    trainee.precision.took()
    statistics.keep()
    after: Tensor | None = None
    if randomness is not None and trainee.weigher.told(stats):
        untouched = RunningStatistics(trainee.model)
        randomness.replay()
        with torch.no_grad():
            after = torch.stack([sums(part, trainee.model).double() for part in parts]).sum(0)
        untouched.undo()
    trainee.weigher.learn(stats, after)
    return losses


def train(
    config: Config,
    trainee: Trainee,
    position: Position,
    loader: Batches,
    runtime: Runtime,
    *,
    commit: Callable[[Position], None],
    record: Callable[[dict[str, Any]], None],
    at_epoch_end: Callable[[int], bool],
    watch: Callable[[], None],
) -> bool:
    """Train from `position` to the end of the last epoch, or until a stop is agreed on.

    Args:
        commit: makes the state at a position durable; called by every rank, at the same step.
        record: receives one row of metrics for each progress line, and may add to it.
        at_epoch_end: called by every rank with the number of epochs done; whether that is enough.
        watch: called between steps, raises what has failed meanwhile.

    Returns:
        Whether training is complete.

    Raises:
        Rewind: too many steps in a row were bad; by all ranks.
    """
    specs, device = trainee.specs, runtime.device
    steps, first, committed_step = trainee.steps_per_epoch * config.epochs, position.step, position.step
    window, of_epoch, of_run = _window(len(specs), device), Sums(), Sums()
    began, commit_due, log_due = time.perf_counter(), Every(config.checkpoint.every_s), Every(config.log_every_s)
    batches = agreed_batches(
        loader,
        specs,
        runtime,
        stop=runtime.stop_requested,
        commit=lambda: runtime.commit_requested() or (trainee.streak.untrained == 0 and commit_due()),
        log=log_due,
    )
    fed_by = machine(config)
    settle(trainee, loader.size_px, device)
    trainee.train_mode()

    for batch, agreed, waits in batches:
        watch()
        if (agreed.stop or agreed.commit) and position.step != committed_step:
            began_commit = time.perf_counter()
            commit(position)
            waits.commit_s = time.perf_counter() - began_commit
            committed_step = position.step
        if agreed.stop:
            return False
        epoch = (position.step + 0.5) / trainee.steps_per_epoch
        rate = set_learning_rate(trainee.optimizer, config.optimizer, epoch, config.epochs, config.global_batch)
        torch.manual_seed(key("step", config.seed, batch.step, runtime.rank) >> 1)

        trainee.copied_s = 0.0
        losses = None if batch.step in trainee.passed_over else train_step(trainee, batch, agreed.counts, device)

        if losses is None:
            _skipped(trainee, position, batch, runtime)
        else:
            trainee.streak = Streak()
            if trainee.ema is not None:
                trainee.ema.update(agreed.samples)
            window.losses += losses
            window.counts += agreed.counts
            window.together += together(spec.valid(torch.from_numpy(batch.labels[spec.name])) for spec in specs)
        position.step += 1
        position.ledger = (position.ledger + batch.ledger) % 2**64
        position.quarantined += agreed.quarantined
        window.samples += agreed.samples
        waits.copy_s = trainee.copied_s
        window.waits.add(waits)
        check_budget(config, batch, position.quarantined, position.step, trainee.steps_per_epoch)

        done = position.step % trainee.steps_per_epoch == 0
        if agreed.log or done:
            row, sums = _progress(window, position, steps, rate, trainee, runtime)
            row["ceiling"] = ceilings(sums, fed_by)
            of_epoch.add(sums)
            record(row)
            eta_s = (time.perf_counter() - began) * (steps - position.step) / (position.step - first)
            runtime.emit({"kind": "progress", "eta_s": eta_s, **row})
            window = _window(len(specs), device)
        if done:
            number = position.step // trainee.steps_per_epoch
            runtime.emit({"kind": "blame", "text": f"epoch {number}: {verdict(of_epoch, fed_by)}"})
            of_run.add(of_epoch)
            of_epoch = Sums()
            enough = at_epoch_end(number)
            commit(position)
            committed_step = position.step
            commit_due.restart()
            if enough:
                break
            trainee.train_mode()
            window = _window(len(specs), device)
    if of_run.samples:
        runtime.emit({"kind": "blame", "text": f"all in all {verdict(of_run, fed_by)}"})
    return True


@dataclass(frozen=True)
class Scores:
    """An evaluation: per task its metrics, loss and `labels`, the rows that had one; and the rows without an image."""

    metrics: dict[str, dict[str, float]]
    quarantined: int


@torch.no_grad()
def evaluate(
    model: nn.Module,
    specs: list[TaskSpec],
    batches: Iterable[Batch],
    standardise: Standardise,
    precision: Precision,
    runtime: Runtime,
    rows: int,
) -> Scores:
    """Metrics per task over a whole split, every row counted once whatever the number of workers.

    Raises:
        DataError: valid and quarantined rows are together not the `rows` of the split.
    """
    model.eval()
    device, tally, counts = runtime.device, Tally(specs), torch.zeros(2, dtype=torch.float64)
    for batch in map(present, batches):
        images, colour = torch.from_numpy(batch.images).to(device), torch.from_numpy(batch.colour).to(device)
        outputs = precision.apply(model, standardise(images, colour))
        status = torch.from_numpy(batch.status)
        labels = {name: torch.from_numpy(values).to(device) for name, values in batch.labels.items()}
        tally.add(outputs, labels, status == OK)
        counts += torch.stack([(status == OK).sum(), (status == QUARANTINED).sum()])
    valid, quarantined = map(int, runtime.sum(counts).tolist())
    if valid + quarantined != rows:
        got = f"{valid} valid rows and {quarantined} quarantined ones"
        raise DataError("Evaluation did not count every row once.", got=got, expected=f"{rows} rows")
    return Scores(tally.metrics(runtime), quarantined)


def _window(tasks: int, device: torch.device) -> Window:
    zeros = torch.zeros(tasks, dtype=torch.float64)
    return Window(zeros.to(device, copy=True), zeros.clone(), torch.zeros(tasks, tasks, dtype=torch.float64))


def _progress(
    window: Window, position: Position, steps: int, rate: float, trainee: Trainee, runtime: Runtime
) -> tuple[dict[str, Any], Sums]:
    """The row of a window, and where its time went on an average rank."""
    window.waits.total_s = seconds = time.perf_counter() - window.began
    parts = [window.losses.cpu(), window.together.reshape(-1), torch.tensor(window.waits.values(), dtype=torch.float64)]
    losses, both, waits = runtime.sum(torch.cat(parts)).split([len(part) for part in parts])
    losses, sums = losses / divisor(window.counts), Sums.mean(waits.tolist(), runtime.world_size)
    names = [spec.name for spec in trainee.specs]
    row: dict[str, Any] = {
        "step": position.step,
        "steps": steps,
        "epoch": position.step / trainee.steps_per_epoch,
        "lr": rate,
        "loss": dict(zip(names, losses.tolist(), strict=True)),
        "images_per_s": window.samples / seconds,
        "blame": sums.shares(),
        "skipped": position.skipped,
        "quarantined": position.quarantined,
        "balancing": {
            **trainee.weigher.telemetry.report(names),
            "overlap": overlap(names, both.view(len(names), -1)),
        },
    }
    return row, sums


def _skipped(trainee: Trainee, position: Position, batch: Batch, runtime: Runtime) -> None:
    streak = trainee.streak
    position.skipped += 1
    streak.untrained += 1
    if batch.step in trainee.passed_over:
        return
    scaled = trainee.precision.skipped()
    now = f"; losses are scaled by {trainee.precision.scale():,.0f} from here on" if scaled else ""
    runtime.emit({"kind": "note", "text": f"step {batch.step}: a gradient is not finite; the step is skipped{now}"})
    if not scaled:
        streak.add_bad(batch.step)
    if streak.bad >= BAD_STEPS:
        raise Rewind(streak.since, batch.step)
