"""A job in this process, or in those of a group, for what it says."""

import io

import torch

from mtl import local
from mtl.config import Config
from mtl.console import RunConsole
from mtl.runtime import LocalRuntime


def notes_of(config: Config) -> list[str]:
    """Run this rank's part of the job in fp64; its notes, which only the first rank has."""
    notes: list[str] = []

    def listen(event: dict[str, str]) -> None:
        if event["kind"] == "note":
            notes.append(event["text"])

    with LocalRuntime(gpu=False, threads=1, listen=listen) as runtime:
        if runtime.rank == 0:
            local.lead(config, RunConsole(io.StringIO()), runtime, torch.float64)
        else:
            local.follow(config, runtime, torch.float64)
    return notes
