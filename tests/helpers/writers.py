"""Processes that own runs and commit checkpoints to them, for tests in which they are killed or compete."""

import os
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier

import torch
from torch import Tensor

from mtl.attempt import Attempt, begin_attempt, retain
from mtl.checkpoint import load_newest, save
from mtl.errors import RunOwned
from mtl.lease import Clock, Lease, acquire
from mtl.record import Commit, checkpoint_path
from mtl.store import Store, open_store

ELEMENTS = 20_000


def state(step: int) -> dict[str, dict[str, Tensor]]:
    """A tiny training state that tells its step."""
    weights = torch.full((ELEMENTS,), float(step))
    return {"model": {"w": weights}, "optimizer": {"m": weights * 2}}


def commit_for_ever(uri: str, variables: Mapping[str, str], told: Connection) -> None:
    """Go on with the run at `uri` from its newest commit, a commit a step; `told` gets each step once it is durable.

    A damaged checkpoint is an error here, and not fallen back from.
    """
    os.environ.update(variables)
    store = open_store(uri)
    lease = acquire(store, "killed", on_wait=lambda _: None, heartbeat_s=0.05)
    assert isinstance(lease, Lease)
    attempt = begin_attempt(store, lease.owner.id)
    found = load_newest(store, attempt.record.checkpoints, _refuse)
    step = found[0].step if found else 0
    told.send(step)
    while True:
        step += 1
        commit(store, attempt, step)
        told.send(step)


def commit(store: Store, attempt: Attempt, step: int) -> None:
    """Save the state of `step`, and make it the newest of the run."""
    path = checkpoint_path(step, attempt.number)
    seal = save(store, path, state(step), {"step": step})
    made = Commit(path=path, step=step, epoch=0, samples=step, manifest_sha256=seal, time="")
    retain(store, attempt.commit(made))


def contend(uri: str, variables: Mapping[str, str], names: list[str], barrier: Barrier, told: Connection) -> None:
    """Race for each of the runs `names` at `uri`; who wins it commits and lets go when all others have given up.

    `told` gets, for each name, whether this process won, and the number of the process that it was told owns the run.
    """
    os.environ.update(variables)
    store = open_store(uri)
    for name in names:
        run = store.child(name)
        barrier.wait()
        try:
            lease = acquire(
                run, name, on_wait=lambda _: None, heartbeat_s=0.02, clock=Clock(sleep=lambda _: time.sleep(0.01))
            )
        except RunOwned as error:
            told.send((False, str(error.got)))
            barrier.wait()
        else:
            assert isinstance(lease, Lease)
            commit(run, begin_attempt(run, lease.owner.id), 1)
            told.send((True, f"process {os.getpid()}"))
            barrier.wait()
            lease.release("finished", {})
        barrier.wait()


def _refuse(why: str) -> None:
    raise AssertionError(why)
