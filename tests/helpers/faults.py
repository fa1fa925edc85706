"""What happens to a rank of a test at a chosen moment of its training."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Literal

from mtl import job, loop, scoring
from mtl.attempt import Attempt
from mtl.data.batch import Batch

WHERE: dict[str, tuple[Any, str]] = {
    "step": (loop, "train_step"),
    "evaluate": (scoring, "evaluate_split"),
    "upload": (job, "save"),
    "commit": (Attempt, "commit"),
    "retain": (job, "retain"),
}
"""Where faults strike, by name: before the function there is called."""


@dataclass(frozen=True)
class Fault:
    """`what` happens to `rank` as it enters `where`, for the `at`-th time of its life (from 0); of steps: at step `at`.

    kill        SIGKILL
    exit        the process ends without a word
    terminate   SIGTERM, as before a preemption
    blind       the images of this batch become NaN
    derange     the labels of this batch become so large that training blows up after it, though it is finite itself
    hold        nothing goes on until `until` exists
    forbid      it is an error to come here
    """

    where: Literal["step", "evaluate", "upload", "commit", "retain"]
    at: int
    what: Literal["kill", "exit", "terminate", "blind", "derange", "hold", "forbid"]
    rank: int = 0
    until: Path | None = None

    def strike(self, args: tuple[Any, ...]) -> None:
        """Do it."""
        match self.what:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                os._exit(7)
            case "terminate":
                os.kill(os.getpid(), signal.SIGTERM)
            case "blind":
                next(arg for arg in args if isinstance(arg, Batch)).colour[:] = float("nan")
            case "derange":
                next(arg for arg in args if isinstance(arg, Batch)).labels["amount"][:] = 1e38
            case "hold":
                assert self.until is not None
                while not self.until.exists():
                    time.sleep(0.01)
            case "forbid":
                raise AssertionError(f"{self.where} was reached")


def install(faults: tuple[Fault, ...], rank: int) -> None:
    """Prepare `faults` in this process, which is `rank`."""
    for where in WHERE:
        here = [fault for fault in faults if fault.where == where and fault.rank == rank]
        if here:
            module, name = WHERE[where]
            setattr(module, name, _struck(getattr(module, name), here))


def _struck(function: Callable[..., Any], faults: list[Fault]) -> Callable[..., Any]:
    calls = 0

    @wraps(function)
    def entered(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        now = next((arg.step for arg in args if isinstance(arg, Batch)), calls)
        calls += 1
        for fault in faults:
            if fault.at == now:
                fault.strike(args)
        return function(*args, **kwargs)

    return entered
