"""One rank's part of a training job: build everything from the configuration, resume, train, evaluate, commit."""

import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, final

import numpy as np
import torch

from mtl.attempt import begin_attempt, retain
from mtl.balancing.signals import Weigher
from mtl.checkpoint import load_newest, restore_model, save
from mtl.config import Config
from mtl.console import counted
from mtl.data.colour import Standardise
from mtl.data.mixture import AnyOrder
from mtl.distil import conclusion
from mtl.errors import CheckpointError, StoreError
from mtl.goodput import Account, Meter, now, summary, write
from mtl.loop import train
from mtl.mixing import training_order, training_sets
from mtl.model import MultiTaskModel
from mtl.optim import build_optimizer
from mtl.optimizer_state import optimizer_tensors, restore_optimizer
from mtl.parts import (
    average_buffers,
    build_loader,
    build_model,
    build_specs,
    build_weigher,
    evaluate_split,
    initialise,
    micro_batch,
    rank_invariant,
    signal_of,
)
from mtl.record import Commit, checkpoint_path, read
from mtl.runtime import Runtime
from mtl.store import open_store
from mtl.trainee import Position, Trainee

Result = dict[str, Any]


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
    rows: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def run(self) -> Result:
        """Train to the end or to an agreed stop, and return the run's result; equal on every rank."""
        config, runtime, began = self.config, self.runtime, time.perf_counter()
        if config.deterministic:
            torch.use_deterministic_algorithms(True)
        sets = training_sets(config)
        self.data, self.manifest = sets[0].store, sets[0].manifest
        self.store = open_store(config.storage).child(config.name)
        self.specs = build_specs(config, self.manifest)
        self.meter = Meter()
        self.attempt = begin_attempt(self.store, self.owner_id) if runtime.rank == 0 else None
        self.parts = 0
        self.evaluations: dict[str, Any] = {}
        order = training_order(config, sets)
        model = build_model(config, self.specs, self.dtype).to(runtime.device)
        optimizer = build_optimizer(model, config.optimizer)
        self.names = {parameter: name for name, parameter in model.named_parameters()}
        weigher = build_weigher(config, self.specs, runtime.world_size, runtime.device)
        position = self._resume(model, optimizer, weigher, order)
        parallel = runtime.parallel(model)
        trainee = Trainee(
            model=model,
            parallel=parallel,
            optimizer=optimizer,
            specs=self.specs,
            weigher=weigher,
            signal=signal_of(config, weigher, model, parallel, runtime.world_size),
            standardise=Standardise(self.manifest.statistics, config.augment, runtime.device, self.dtype),
            steps_per_epoch=order.steps,
            micro_batch=micro_batch(config, runtime.world_size),
            clip_norm=config.optimizer.clip_norm,
            frozen_batch_norm=config.model.batch_norm == "frozen",
        )
        self._open(trainee, position)
        loader = build_loader(
            config, self.specs, sets, order, range(position.step, order.steps * config.epochs), runtime
        )
        self.meter.resume()
        finished = train(
            config,
            trainee,
            position,
            loader,
            runtime,
            commit=lambda at: self._pausing(self._commit, trainee, order, at),
            record=self.rows.append,
            at_epoch_end=lambda epoch: self._pausing(self._evaluate, "val", trainee, epoch),
        )
        self.meter.pause()
        if finished:
            self._evaluate("test", trainee, config.epochs)
            self._flush(position)
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
            "metrics": self.evaluations,
            **self._goodput(),
            "verdict": conclusion(self.store, {name: task.weight for name, task in config.tasks.items()}),
        }

    def _resume(
        self, model: MultiTaskModel, optimizer: torch.optim.Optimizer, weigher: Weigher, order: AnyOrder
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
            self.evaluations = state["evaluations"]
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

    def _evaluate(self, split: str, trainee: Trainee, epoch: int) -> None:
        average_buffers(trainee.model, self.runtime)
        rows = self.manifest.split(split).rows
        scores = evaluate_split(
            self.config, self.specs, self.data, self.manifest, split, trainee.model, self.runtime, self.dtype
        )
        metrics = scores.metrics
        self.evaluations = {**self.evaluations, split: metrics}
        counts = {"rows": rows, "quarantined": scores.quarantined}
        row = {"kind": "evaluation", "split": split, "epoch": epoch, **counts, "metrics": metrics}
        if self.runtime.rank == 0:
            self.rows.append(row)
        self.runtime.emit(row)
        flat = {f"{split}/{task}/{name}": value for task, m in metrics.items() for name, value in m.items()}
        self.runtime.report({"epoch": epoch, **flat})

    def _commit(self, trainee: Trainee, order: AnyOrder, position: Position) -> None:
        average_buffers(trainee.model, self.runtime)
        ledger, began = self._ledger(position), time.perf_counter()
        if self.attempt is None:
            return
        tensors, optimizer = optimizer_tensors(trainee.optimizer, self.names)
        epoch, batch = divmod(position.step, order.steps)
        path = checkpoint_path(position.step, self.attempt.number)
        seal = save(
            self.store,
            path,
            {"model": trainee.model.state_dict(), "optimizer": tensors},
            {
                "order_id": order.order_id,
                "epoch": epoch,
                "position": batch * order.global_batch,
                "ledger": f"{ledger:016x}",
                "quarantined": position.quarantined,
                "skipped": position.skipped,
                "optimizer": optimizer,
                "balancer": trainee.weigher.state_dict(),
                "evaluations": self.evaluations,
                "useful_s": self.meter.useful_s,
            },
        )
        self._flush(position)
        commit = Commit(
            path=path,
            step=position.step,
            epoch=epoch,
            samples=epoch * order.samples + min(batch * order.global_batch, order.samples),
            manifest_sha256=seal,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        record = self.attempt.commit(commit, damaged=self.damaged, keep=self.config.checkpoint.keep)
        try:
            retain(self.store, record)
        except StoreError as error:
            self._note(f"old checkpoints could not be deleted, the next commit tries again: {error.what}")
        self.account.update(until=now(), useful_s=self.meter.useful_s)
        write(self.store, self.account)
        self.runtime.emit({"kind": "commit", "step": position.step, "seconds": time.perf_counter() - began})

    def _pausing(self, function: Callable[..., None], *args: Any) -> None:
        with self.meter.paused():
            function(*args)

    def _goodput(self) -> dict[str, Any]:
        if self.attempt is not None:
            self.account["until"] = now()
            write(self.store, self.account)
        self.runtime.sum(torch.zeros(1))  # every rank reads what rank 0 has written
        return summary(self.store)

    def _flush(self, position: Position) -> None:
        if self.attempt is None or not self.rows:
            return
        self.parts += 1
        lines = "".join(json.dumps(row) + "\n" for row in self.rows)
        self.store.put(f"metrics/a{self.attempt.number}-{self.parts:06d}.jsonl", lines.encode())
        self.rows.clear()

    def _ledger(self, position: Position) -> int:
        share = np.array([position.ledger], np.uint64).view(np.int64)
        return int(self.runtime.sum(torch.from_numpy(share)).numpy().view(np.uint64)[0])

    def _note(self, text: str) -> None:
        self.runtime.emit({"kind": "note", "text": text})
