"""One rank's part of a training job: build everything from the configuration, resume, train, evaluate, commit."""

import json
import platform
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, final

import numpy as np
import torch
from torch import nn

from mtl.attempt import begin_attempt, retain
from mtl.balancing import Balancer, Static
from mtl.checkpoint import load_newest, restore_model, save
from mtl.config import Config
from mtl.console import counted
from mtl.data.colour import Standardise
from mtl.data.manifest import Manifest
from mtl.data.order import Order
from mtl.errors import CheckpointError, StoreError
from mtl.loop import train
from mtl.optim import build_optimizer
from mtl.optimizer_state import optimizer_tensors, restore_optimizer
from mtl.parts import (
    average_buffers,
    build_loader,
    build_model,
    build_specs,
    evaluate_split,
    micro_batch,
    rank_invariant,
)
from mtl.preflight import training_order
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
    rows: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def run(self) -> Result:
        """Train to the end or to an agreed stop, and return the run's result; equal on every rank."""
        config, runtime, began = self.config, self.runtime, time.perf_counter()
        if config.deterministic:
            torch.use_deterministic_algorithms(True)
        self.data = open_store(config.data)
        self.store = open_store(config.storage).child(config.name)
        self.manifest = Manifest.load(self.data)
        self.specs = build_specs(config, self.manifest)
        self.attempt = begin_attempt(self.store, self.owner_id) if runtime.rank == 0 else None
        self.parts = 0
        self.evaluations: dict[str, Any] = {}
        order = training_order(config, self.manifest, self.data)
        model = build_model(config, self.specs, self.dtype).to(runtime.device)
        optimizer = build_optimizer(model, config.optimizer)
        self.names = {parameter: name for name, parameter in model.named_parameters()}
        balancer = Static([spec.weight for spec in self.specs])
        position = self._resume(model, optimizer, balancer, order)
        trainee = Trainee(
            model=model,
            parallel=runtime.parallel(model),
            optimizer=optimizer,
            specs=self.specs,
            balancer=balancer,
            standardise=Standardise(self.manifest.statistics, config.augment, runtime.device, self.dtype),
            steps_per_epoch=order.steps,
            micro_batch=micro_batch(config, runtime.world_size),
            clip_norm=config.optimizer.clip_norm,
            frozen_batch_norm=config.model.batch_norm == "frozen",
        )
        self._open(trainee, position)
        loader = build_loader(
            config, self.specs, self.data, "train", order, range(position.step, order.steps * config.epochs), runtime
        )
        finished = train(
            config,
            trainee,
            position,
            loader,
            runtime,
            commit=lambda at: self._commit(trainee, order, at),
            record=self.rows.append,
            at_epoch_end=lambda epoch: self._evaluate("val", trainee, epoch),
        )
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
        }

    def _resume(self, model: nn.Module, optimizer: torch.optim.Optimizer, balancer: Balancer, order: Order) -> Position:
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
                    do="use the data set, seed and batch it was started with, or another run name",
                )
            restore_model(model, saved.files["model"])
            state: Any = saved.state
            restore_optimizer(optimizer, self.names, saved.files["optimizer"], state["optimizer"])
            balancer.load_state_dict(state["balancer"])
            self.evaluations = state["evaluations"]
            step = commit.step
            first = self.runtime.rank == 0
            position = Position(step, int(state["ledger"], 16) if first else 0, state["quarantined"], state["skipped"])
            self._note(f"resumed from the commit of step {step:,}")
        else:
            position = Position()
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
        environment = {
            "attempt": self.attempt.number,
            "began": datetime.now(UTC).isoformat(timespec="seconds"),
            "step": position.step,
            "workers": self.runtime.world_size,
            "device": str(self.runtime.device),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "host": platform.node(),
        }
        self.store.put(f"attempts/{self.attempt.number}.json", json.dumps(environment, indent=1).encode())
        warning = rank_invariant(self.config, trainee.model)
        if warning:
            self._note(warning)
        parameters = sum(p.numel() for p in trainee.model.parameters())
        workers = counted(self.runtime.world_size, "worker")
        self._note(f"attempt {self.attempt.number}: {parameters:,} parameters, {workers}")

    def _evaluate(self, split: str, trainee: Trainee, epoch: int) -> None:
        average_buffers(trainee.model, self.runtime)
        rows = self.manifest.split(split).rows
        metrics = evaluate_split(
            self.config, self.specs, self.data, self.manifest, split, trainee.model, self.runtime, self.dtype
        )
        self.evaluations = {**self.evaluations, split: metrics}
        row = {"kind": "evaluation", "split": split, "epoch": epoch, "rows": rows, "metrics": metrics}
        if self.runtime.rank == 0:
            self.rows.append(row)
        self.runtime.emit(row)
        flat = {f"{split}/{task}/{name}": value for task, m in metrics.items() for name, value in m.items()}
        self.runtime.report({"epoch": epoch, **flat})

    def _commit(self, trainee: Trainee, order: Order, position: Position) -> None:
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
                "balancer": trainee.balancer.state_dict(),
                "evaluations": self.evaluations,
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
        self.runtime.emit({"kind": "commit", "step": position.step, "seconds": time.perf_counter() - began})

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
