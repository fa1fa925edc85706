"""A sweep in this process, one trial after the other: for debugging, without Ray and without pruning."""

from typing import Any

import torch

from mtl.errors import MtlError
from mtl.job import Job, Result
from mtl.limit import Limit
from mtl.runtime import LocalRuntime
from mtl.session import Says
from mtl.session import train as owned
from mtl.sweep.board import Board
from mtl.sweep.record import Trial


def run(board: Board, console: Says) -> None:
    """Execute what is left of the sweep; SIGTERM or SIGINT commits the trial under way and stops.

    Raises:
        MtlError: a baseline failed, or storage did.
    """
    over = Limit(board.config.max_hours, console.line)
    while (trial := board.next()) is not None:
        try:
            result = _train(board, trial, console, over)
        except MtlError as error:
            board.end(trial.id, "failed", error=str(error))
            continue
        board.stopping = result["status"] == "stopped"
        if board.stopping:
            board.end(trial.id, "stopped")
        else:
            board.end(trial.id, "finished", val=result["metrics"]["val"], test=result["metrics"]["test"])


def _train(board: Board, trial: Trial, console: Says, over: Limit) -> Result:
    config = board.terms.config_of(trial)

    def listen(event: dict[str, Any]) -> None:
        if event["kind"] == "evaluation" and event["split"] == "val":
            board.report(trial.id, event["epoch"], event["metrics"])
        elif event["kind"] == "note":
            board.tell(trial.id, event["text"])

    gpu, threads = config.resources.gpu, torch.get_num_threads()
    with LocalRuntime(gpu=gpu, threads=threads, listen=listen, over=over) as runtime:
        return owned(config, console, lambda owner: Job(config, runtime, owner).run())
