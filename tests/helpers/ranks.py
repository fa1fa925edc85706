"""Groups of W processes on this machine, joined by gloo on loopback as torchrun would join them."""

import json
import multiprocessing
import os
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

# The server imports torch once and forks every rank, so that a rank starts in milliseconds.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["mtl.local", "tests.helpers.engine"])

_GRACE_S = 10.0  # for the ranks that are left, once one has died
_LIMIT_S = 300.0


@dataclass(frozen=True)
class Outcome:
    """How one rank ended.

    `value` is what its function returned; `error` the name of the exception it raised, `text` its traceback. A rank
    that was killed has none of them.
    """

    exitcode: int | None
    value: Any = None
    error: str | None = None
    text: str = ""


class Group:
    """W ranks that run `function(*args)`, an importable function whose result is JSON. Warnings are errors there."""

    def __init__(self, folder: Path, world_size: int, function: Callable[..., Any], *args: Any) -> None:
        folder.mkdir(parents=True)
        # As under torchrun, the parent serves the store: the system picks its port, so nobody can take it meanwhile.
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._files = [folder / f"rank-{rank}.json" for rank in range(world_size)]
        self.processes: list[BaseProcess] = [
            CONTEXT.Process(target=_rank, args=(rank, world_size, self._store.port, file, function, args), daemon=True)
            for rank, file in enumerate(self._files)
        ]
        for process in self.processes:
            process.start()

    def alive(self) -> bool:
        """Whether a rank is still running."""
        return any(process.is_alive() for process in self.processes)

    def wait(self) -> list[Outcome]:
        """The outcome of every rank. What outlives a dead rank for long is killed, as torchrun would."""
        began = time.monotonic()
        died: float | None = None
        while self.alive():
            now = time.monotonic()
            if died is None and any(process.exitcode for process in self.processes):
                died = now
            if now - began > _LIMIT_S or (died is not None and now - died > _GRACE_S):
                for process in self.processes:
                    process.kill()
            self.processes[0].join(0.02)
        return [self._outcome(process, file) for process, file in zip(self.processes, self._files, strict=True)]

    @staticmethod
    def _outcome(process: BaseProcess, file: Path) -> Outcome:
        process.join()
        return Outcome(process.exitcode, **json.loads(file.read_text())) if file.exists() else Outcome(process.exitcode)


def values(outcomes: list[Outcome]) -> list[Any]:
    """What the ranks returned; an assertion error with their tracebacks unless all of them did."""
    failed = [f"rank {i} ended with {o.exitcode}\n{o.text}" for i, o in enumerate(outcomes) if o.error or o.exitcode]
    assert not failed, "\n".join(failed)
    return [outcome.value for outcome in outcomes]


def _rank(
    rank: int, world_size: int, port: int, file: Path, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        GLOO_SOCKET_IFNAME="lo",
        TORCHELASTIC_RUN_ID="tests",
        TORCHELASTIC_USE_AGENT_STORE="True",
        TORCHELASTIC_RESTART_COUNT="0",
    )
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    try:
        outcome = {"value": function(*args)}
    except BaseException as error:
        outcome = {"error": type(error).__name__, "text": "".join(traceback.format_exception(error))}
    part = file.with_suffix(".part")
    part.write_text(json.dumps(outcome))
    part.rename(file)
    if "error" in outcome:
        os._exit(1)  # threads and peers that wait for something that never comes are not waited for
