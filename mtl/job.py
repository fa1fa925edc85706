"""One rank's part of a training job: build everything from the configuration, resume, train, evaluate, commit."""

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar, final

import numpy as np
import torch

from mtl import goodput, rewind
from mtl.accounting import scale, totals
from mtl.agreement import Batches
from mtl.attempt import begin_attempt, retain
from mtl.background import Background
from mtl.checkpoint import save, snapshot
from mtl.config import Config
from mtl.console import counted
from mtl.data.colour import Standardise
from mtl.data.growth import Growth
from mtl.data.mixture import AnyOrder
from mtl.data.names import image_ids
from mtl.distil import conclusion
from mtl.ema import Ema
from mtl.errors import StoreError
from mtl.goodput import Account, Meter, now
from mtl.loop import train
from mtl.mixing import DataSet, training_order, training_sets
from mtl.optim import build_optimizer
from mtl.parts import (
    average_buffers,
    build_model,
    build_specs,
    build_weigher,
    compile_backbone,
    initialise,
    micro_batch,
    peers,
    rank_invariant,
    signal_of,
    strong_of,
    training_loader,
)
from mtl.precision import Precision, set_numerics
from mtl.profiling import Profiled, profiled
from mtl.record import Commit, checkpoint_path, read
from mtl.runtime import Runtime
from mtl.scoring import Scorer
from mtl.state import Files, State, newest
from mtl.store import open_store
from mtl.tracking import Trackers, open_trackers
from mtl.trainee import Position, Streak, Trainee

Result = dict[str, Any]
Event = dict[str, Any]
T = TypeVar("T")


@final
@dataclass
class Job:
    """A job on one rank. Call `run` once.

    Args:
        config: what to train.
        runtime: this rank.
        owner_id: the lease under which rank 0 may commit.
        dtype: of parameters; float64 in tests of exactness.
    """

    config: Config
    runtime: Runtime
    owner_id: str
    dtype: torch.dtype = torch.float32
    account: Account = field(default_factory=Account)

    def run(self) -> Result:
        """Train to the end or to an agreed stop, and return the run's result; equal on every rank.

        Raises:
            Rewind: too many steps were bad. What to pass over is recorded, and another job may go on at once.
        """
        config, runtime, began = self.config, self.runtime, time.perf_counter()
        self.began = now()
        set_numerics(config.precision, deterministic=config.deterministic)
        sets = training_sets(config, peers(runtime))
        self.data, self.manifest = sets[0].store, sets[0].manifest
        self.store = open_store(config.storage).child(config.name)
        self.specs = build_specs(config, self.manifest)
        self.meter = Meter()
        self.attempt = begin_attempt(self.store, self.owner_id) if runtime.rank == 0 else None
        self.scorer = Scorer(
            config, self.specs, self.data, self.manifest, runtime, self.dtype, record=lambda row: self.trackers.log(row)
        )
        self.background = Background(runtime.emit, threaded=config.checkpoint.background)
        order = training_order(config, sets)
        self.growth = Growth(config.augment, order.steps * config.epochs)
        model = build_model(config, self.specs, self.dtype).to(runtime.device)
        # Before the runtime hooks into the model.
        self.scale = scale(model, config, runtime.device)
        optimizer = build_optimizer(model, config.optimizer)
        weigher = build_weigher(config, self.specs, runtime.world_size, runtime.device)
        precision = Precision(config.precision, runtime.device)
        ema = Ema(model, config.optimizer.ema_epochs * order.samples) if config.optimizer.ema_epochs else None
        self.state = State(model, optimizer, weigher, precision, ema, self.scorer.selection)
        position = self._resume(order)
        if config.compile:
            compile_backbone(model, traversed_again=config.balancing.backend == "exact")
        parallel = runtime.parallel(model)
        trainee = Trainee(
            model=model,
            parallel=parallel,
            optimizer=optimizer,
            specs=self.specs,
            weigher=weigher,
            signal=signal_of(config, weigher, model, parallel, runtime.world_size, precision.scale),
            standardise=Standardise(self.manifest.statistics, config.augment, runtime.device, self.dtype),
            steps_per_epoch=order.steps,
            micro_batch=micro_batch(config, runtime.world_size),
            clip_norm=config.optimizer.clip_norm,
            frozen_batch_norm=config.model.batch_norm == "frozen",
            precision=precision,
            strong=strong_of(config),
            growth=self.growth,
            ema=ema,
            passed_over=rewind.passed_over(self.skipped),
            streak=self.streak,
        )
        self.trackers = self._open(trainee, position)
        loader: Batches = training_loader(config, self.specs, sets, order, position.step, runtime)
        watched: Profiled | None = None
        if config.profile and self.attempt is not None:
            loader = watched = profiled(
                loader,
                trainee,
                runtime.device,
                clock=lambda: self.meter.useful_s,
                store=self.store,
                attempt=self.attempt.number,
                say=self._note,
            )
        self.meter.resume()
        try:
            with self.background:
                finished = self.scorer.selection.enough or train(
                    config,
                    trainee,
                    position,
                    loader,
                    runtime,
                    commit=lambda at: self._pausing(self._commit, trainee, order, at),
                    record=lambda row: self._record(row, order),
                    at_epoch_end=lambda epoch: self._pausing(self.scorer.after_epoch, trainee, epoch),
                    watch=self.background.watch,
                )
                self.meter.pause()
                if watched is not None:
                    watched.finish()
        except rewind.Rewind as bad:
            self._pass_over(bad, order, sets)
            raise
        if finished:
            self.scorer.evaluate("test", trainee, position.step // order.steps)
            self.scorer.test_best(trainee, self.store)
        self.trackers.close()
        return {
            "status": "finished" if finished else "stopped",
            "steps": position.step,
            "epochs": position.step / order.steps,
            "ledger": f"{self._ledger(position):016x}",
            "order_id": order.order_id,
            "quarantined": position.quarantined,
            "skipped": position.skipped,
            "seconds": time.perf_counter() - began,
            "parameters": sum(p.numel() for p in model.parameters()),
            "metrics": self.scorer.done,
            **self._goodput(position, order),
            "verdict": conclusion(self.store, {name: task.weight for name, task in config.tasks.items()}),
        }

    def _resume(self, order: AnyOrder) -> Position:
        # Every rank reads the same list: nobody can commit before all ranks have begun.
        record = self.attempt.record if self.attempt else read(self.store)
        self.damaged: tuple[Commit, ...] = ()
        self.skipped, self.streak = record.skipped if record is not None else (), Streak()
        found = newest(self.store, record, order.order_id, self.runtime, self._note)
        if record is None or found is None:
            for line in initialise(self.config, self.state.model):
                self._note(line)
            return Position()
        commit, saved = found
        self.damaged = record.checkpoints[: record.checkpoints.index(commit)]
        self.state.restore(saved)
        values: Any = saved.state
        self.scorer.done = values["evaluations"]
        self.meter = Meter(values.get("useful_s", 0.0))
        self.streak = Streak(**values.get("streak", {}))
        ledger = int(values["ledger"], 16) if self.runtime.rank == 0 else 0
        self._note(f"resumed from the commit of step {commit.step:,}")
        return Position(commit.step, ledger, values["quarantined"], values["skipped"])

    def _open(self, trainee: Trainee, position: Position) -> Trackers:
        if self.attempt is None:
            return Trackers([], position.step, self._note)
        owner = self.attempt.record.owner
        assert owner is not None  # or the attempt would not have begun
        self.account = {
            "attempt": self.attempt.number,
            "job": owner.id,
            "job_began": owner.since,
            "began": self.began,
            "until": now(),
            "useful_s": self.meter.useful_s,
            "after": self.runtime.lost,
            "step": position.step,
            "workers": self.runtime.world_size,
            "device": str(self.runtime.device),
            "scale": self.scale.values(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "host": platform.node(),
        }
        goodput.write(self.store, self.account)
        if warning := rank_invariant(self.config, trainee.model):
            self._note(warning)
        parameters = sum(p.numel() for p in trainee.model.parameters())
        workers = counted(self.runtime.world_size, "worker")
        self._note(f"attempt {self.attempt.number}: {parameters:,} parameters, {workers}")
        if line := self.scale.describe():
            self._note(line)
        return open_trackers(self.config, self.store, self.attempt.number, position.step, self._note)

    def _commit(self, trainee: Trainee, order: AnyOrder, position: Position) -> None:
        average_buffers(trainee.model, trainee.ema, self.runtime)
        ledger, best, self.scorer.best = self._ledger(position), self.scorer.best, False
        if self.attempt is None:
            return
        epoch, batch = divmod(position.step, order.steps)
        files, values = self.state.take()
        values |= {
            "order_id": order.order_id,
            "epoch": epoch,
            "position": batch * order.global_batch,
            "ledger": f"{ledger:016x}",
            "quarantined": position.quarantined,
            "skipped": position.skipped,
            "streak": asdict(trainee.streak),
            "evaluations": self.scorer.done,
            "useful_s": self.meter.useful_s,
        }
        if self.config.checkpoint.background:
            files = snapshot(files)
        samples = epoch * order.samples + min(batch * order.global_batch, order.samples)
        self.background.give(partial(self._write, files, values, position.step, samples, best), kept=best)

    def _write(self, files: Files, values: dict[str, Any], step: int, samples: int, best: bool) -> list[Event]:
        """Make durable what was taken of the state, and say so; maybe in another thread."""
        assert self.attempt is not None
        began, path = time.perf_counter(), checkpoint_path(step, self.attempt.number)
        seal = save(self.store, path, files, values)
        self.trackers.flush()
        commit = Commit(
            path=path,
            step=step,
            epoch=values["epoch"],
            samples=samples,
            manifest_sha256=seal,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        # Commits amid bad steps take no place from those before: see mtl/rewind.py.
        keep = self.config.checkpoint.keep + values["streak"]["untrained"]
        record = self.attempt.commit(commit, damaged=self.damaged, keep=keep, best=best)
        events: list[Event] = []
        try:
            retain(self.store, record)
        except StoreError as error:
            text = f"old checkpoints could not be deleted, the next commit tries again: {error.what}"
            events.append({"kind": "note", "text": text})
        self.account.update(until=now(), useful_s=values["useful_s"])
        goodput.write(self.store, self.account)
        return [*events, {"kind": "commit", "step": step, "seconds": time.perf_counter() - began}]

    def _pass_over(self, bad: rewind.Rewind, order: AnyOrder, sets: Sequence[DataSet]) -> None:
        self.meter.pause()
        folders = [(its.store, its.index) for its in sets]
        said = rewind.pass_over(
            bad, self.store, self.attempt, self.runtime, self.skipped, lambda steps: image_ids(order, folders, steps)
        )
        self.trackers.close()
        self._note(said)
        lost_s = self.meter.useful_s - self.account.get("useful_s", 0.0)  # rank 0's account alone counts
        self.runtime.lost = {"cause": "bad steps", "replayed_s": round(lost_s, 1)}

    def _pausing(self, function: Callable[..., T], *args: Any) -> T:
        with self.meter.paused():
            return function(*args)

    def _record(self, row: dict[str, Any], order: AnyOrder) -> None:
        area = self.growth.area(range(row["step"] - 1, row["step"]))
        row.update(self.scale.row(row["images_per_s"], self.runtime.world_size, order.samples, area))
        self.trackers.log(row)

    def _goodput(self, position: Position, order: AnyOrder) -> dict[str, Any]:
        if self.attempt is not None:
            self.account["until"] = now()
            goodput.write(self.store, self.account)
        self.runtime.sum(torch.zeros(1))  # every rank reads what rank 0 has written
        made, epochs = goodput.summary(self.store), position.step / order.steps
        spent: Result = {"useful_s": made["useful_s"], "images": round(epochs * order.samples), "epochs": epochs}
        return made | totals(goodput.read(self.store), **spent, area=self.growth.area(range(position.step)))

    def _ledger(self, position: Position) -> int:
        share = np.array([position.ledger], np.uint64).view(np.int64)
        return int(self.runtime.sum(torch.from_numpy(share)).numpy().view(np.uint64)[0])

    def _note(self, text: str) -> None:
        self.runtime.emit({"kind": "note", "text": text})
