"""One rank's part of a training job: build everything from the configuration, resume, train, evaluate, commit."""

import json
import platform
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar, final

import numpy as np
import torch
from torch import Tensor

from mtl.attempt import begin_attempt, retain
from mtl.background import Background
from mtl.balancing.signals import Weigher
from mtl.checkpoint import load_newest, restore_model, save, snapshot
from mtl.config import Config
from mtl.console import counted
from mtl.data.colour import Standardise
from mtl.data.mixture import AnyOrder
from mtl.ema import Ema
from mtl.errors import CheckpointError, StoreError
from mtl.goodput import Account, Meter, now, summary, write
from mtl.loop import train
from mtl.mixing import training_order, training_sets
from mtl.model import MultiTaskModel
from mtl.optim import build_optimizer
from mtl.optimizer_state import optimizer_tensors, restore_optimizer
from mtl.parts import (
    average_buffers,
    build_model,
    build_specs,
    build_weigher,
    compile_backbone,
    initialise,
    micro_batch,
    rank_invariant,
    signal_of,
    strong_of,
    training_loader,
)
from mtl.precision import Precision, set_numerics
from mtl.record import Commit, checkpoint_path, read
from mtl.runtime import Runtime
from mtl.scoring import Scorer
from mtl.store import open_store
from mtl.trainee import Position, Trainee

Result = dict[str, Any]
Event = dict[str, Any]
Files = dict[str, dict[str, Tensor]]
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
    rows: deque[dict[str, Any]] = field(default_factory=deque[dict[str, Any]])

    def run(self) -> Result:
        """Train to the end or to an agreed stop, and return the run's result; equal on every rank."""
        config, runtime, began = self.config, self.runtime, time.perf_counter()
        set_numerics(config.precision, deterministic=config.deterministic)
        sets = training_sets(config)
        self.data, self.manifest = sets[0].store, sets[0].manifest
        self.store = open_store(config.storage).child(config.name)
        self.specs = build_specs(config, self.manifest)
        self.meter = Meter()
        self.attempt = begin_attempt(self.store, self.owner_id) if runtime.rank == 0 else None
        self.parts = 0
        self.scorer = Scorer(config, self.specs, self.data, self.manifest, runtime, self.dtype, record=self.rows.append)
        self.background = Background(runtime.emit, threaded=config.checkpoint.background)
        order = training_order(config, sets)
        model = build_model(config, self.specs, self.dtype).to(runtime.device)
        optimizer = build_optimizer(model, config.optimizer)
        self.names = {parameter: name for name, parameter in model.named_parameters()}
        weigher = build_weigher(config, self.specs, runtime.world_size, runtime.device)
        precision = Precision(config.precision, runtime.device)
        horizon = config.optimizer.ema_epochs
        ema = Ema(model, horizon * order.samples) if horizon else None
        position = self._resume(model, optimizer, weigher, precision, ema, order)
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
            ema=ema,
        )
        self._open(trainee, position)
        loader = training_loader(config, self.specs, sets, order, position.step, runtime)
        self.meter.resume()
        with self.background:
            finished = self.scorer.selection.enough or train(
                config,
                trainee,
                position,
                loader,
                runtime,
                commit=lambda at: self._pausing(self._commit, trainee, order, at),
                record=self.rows.append,
                at_epoch_end=lambda epoch: self._pausing(self.scorer.after_epoch, trainee, epoch),
                watch=self.background.watch,
            )
            self.meter.pause()
        if finished:
            self.scorer.evaluate("test", trainee, position.step // order.steps)
            self.scorer.test_best(trainee, self.store)
            self._flush()
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
            **self._goodput(),
        }

    def _resume(
        self,
        model: MultiTaskModel,
        optimizer: torch.optim.Optimizer,
        weigher: Weigher,
        precision: Precision,
        ema: Ema | None,
        order: AnyOrder,
    ) -> Position:
        # Every rank reads the same list: nobody can commit before all ranks have begun.
        record = self.attempt.record if self.attempt else read(self.store)
        self.damaged: tuple[Commit, ...] = ()
        found = None
        if record is not None:
            found = load_newest(self.store, record.checkpoints, self._note)
        step = 0
        if record is not None and found is not None:
            commit, saved = found
            self.damaged = record.checkpoints[: record.checkpoints.index(commit)]
            if saved.state["order_id"] != order.order_id:
                raise CheckpointError(
                    "The checkpoint was written for another order of samples.",
                    got=f"order_id {saved.state['order_id']}",
                    expected=order.order_id,
                    do="use the data sets, seed and batch it was started with, or another run name",
                )
            restore_model(model, saved.files["model"])
            state: Any = saved.state
            restore_optimizer(optimizer, self.names, saved.files["optimizer"], state["optimizer"])
            weigher.load_state_dict(state["balancer"])
            precision.restore(state.get("precision", precision.state()))
            if ema is not None:
                ema.restore(saved.files["ema"], state["ema"])
            self.scorer.selection.restore(state.get("selection", self.scorer.selection.state()))
            self.scorer.done = state["evaluations"]
            self.meter = Meter(state.get("useful_s", 0.0))
            step = commit.step
            first = self.runtime.rank == 0
            position = Position(step, int(state["ledger"], 16) if first else 0, state["quarantined"], state["skipped"])
            self._note(f"resumed from the commit of step {step:,}")
        else:
            position = Position()
            for line in initialise(self.config, model):
                self._note(line)
        total = int(self.runtime.sum(torch.tensor([step]))[0])
        if total != step * self.runtime.world_size:
            raise CheckpointError(
                "The workers could not load the same checkpoint.",
                got=f"step {step} here, an average of {total / self.runtime.world_size:g} over all workers",
                do="rerun the command; if it happens again, storage returns different contents to different workers",
            )
        return position

    def _open(self, trainee: Trainee, position: Position) -> None:
        if self.attempt is None:
            return
        owner = self.attempt.record.owner
        assert owner is not None  # or the attempt would not have begun
        self.account = {
            "attempt": self.attempt.number,
            "job": owner.id,
            "job_began": owner.since,
            "began": now(),
            "until": now(),
            "useful_s": self.meter.useful_s,
            "after": self.runtime.lost,
            "step": position.step,
            "workers": self.runtime.world_size,
            "device": str(self.runtime.device),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "host": platform.node(),
        }
        write(self.store, self.account)
        warning = rank_invariant(self.config, trainee.model)
        if warning:
            self._note(warning)
        parameters = sum(p.numel() for p in trainee.model.parameters())
        workers = counted(self.runtime.world_size, "worker")
        self._note(f"attempt {self.attempt.number}: {parameters:,} parameters, {workers}")

    def _commit(self, trainee: Trainee, order: AnyOrder, position: Position) -> None:
        average_buffers(trainee.model, trainee.ema, self.runtime)
        ledger, best, self.scorer.best = self._ledger(position), self.scorer.best, False
        if self.attempt is None:
            return
        tensors, optimizer = optimizer_tensors(trainee.optimizer, self.names)
        epoch, batch = divmod(position.step, order.steps)
        files: Files = {"model": trainee.model.state_dict(), "optimizer": tensors}
        state: dict[str, Any] = {
            "order_id": order.order_id,
            "epoch": epoch,
            "position": batch * order.global_batch,
            "ledger": f"{ledger:016x}",
            "quarantined": position.quarantined,
            "skipped": position.skipped,
            "optimizer": optimizer,
            "balancer": trainee.weigher.state_dict(),
            "precision": trainee.precision.state(),
            "selection": self.scorer.selection.state(),
            "evaluations": self.scorer.done,
            "useful_s": self.meter.useful_s,
        }
        if trainee.ema is not None:
            files["ema"], state["ema"] = trainee.ema.state()
        if self.config.checkpoint.background:
            files = snapshot(files)
        samples = epoch * order.samples + min(batch * order.global_batch, order.samples)
        self.background.give(partial(self._write, files, state, position.step, samples, best), kept=best)

    def _write(self, files: Files, state: dict[str, Any], step: int, samples: int, best: bool) -> list[Event]:
        """Make durable what was taken of the state, and say so; maybe in another thread."""
        assert self.attempt is not None
        began, path = time.perf_counter(), checkpoint_path(step, self.attempt.number)
        seal = save(self.store, path, files, state)
        self._flush()
        commit = Commit(
            path=path,
            step=step,
            epoch=state["epoch"],
            samples=samples,
            manifest_sha256=seal,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        record = self.attempt.commit(commit, damaged=self.damaged, keep=self.config.checkpoint.keep, best=best)
        events: list[Event] = []
        try:
            retain(self.store, record)
        except StoreError as error:
            text = f"old checkpoints could not be deleted, the next commit tries again: {error.what}"
            events.append({"kind": "note", "text": text})
        self.account.update(until=now(), useful_s=state["useful_s"])
        write(self.store, self.account)
        return [*events, {"kind": "commit", "step": step, "seconds": time.perf_counter() - began}]

    def _pausing(self, function: Callable[..., T], *args: Any) -> T:
        with self.meter.paused():
            return function(*args)

    def _goodput(self) -> dict[str, Any]:
        if self.attempt is not None:
            self.account["until"] = now()
            write(self.store, self.account)
        self.runtime.sum(torch.zeros(1))  # every rank reads what rank 0 has written
        return summary(self.store)

    def _flush(self) -> None:
        """Leave the rows that there are, some of which may be of steps after the commit that is written."""
        rows = [self.rows.popleft() for _ in range(len(self.rows))]
        if self.attempt is None or not rows:
            return
        self.parts += 1
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        self.store.put(f"metrics/a{self.attempt.number}-{self.parts:06d}.jsonl", lines.encode())

    def _ledger(self, position: Position) -> int:
        share = np.array([position.ledger], np.uint64).view(np.int64)
        return int(self.runtime.sum(torch.from_numpy(share)).numpy().view(np.uint64)[0])

    def _note(self, text: str) -> None:
        self.runtime.emit({"kind": "note", "text": text})
