"""A job in this process, for what it says."""

import io

import torch

from mtl import local
from mtl.config import Config
from mtl.console import RunConsole
from mtl.runtime import LocalRuntime


def notes_of(config: Config) -> list[str]:
    """Run the job on one rank in fp64; its notes."""
    notes: list[str] = []

    def listen(event: dict[str, str]) -> None:
        if event["kind"] == "note":
            notes.append(event["text"])

    with LocalRuntime(gpu=False, threads=1, listen=listen) as runtime:
        local.lead(config, RunConsole(io.StringIO()), runtime, torch.float64)
    return notes
