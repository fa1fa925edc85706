"""What the controller does when a worker fails, before it decides on a restart."""

from typing import final

from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train import ControllerError, UserCallback
from ray.train.v2._internal.execution.context import TrainRunContext

from mtl.errors import MtlError, may_pass
from mtl.memory import HOST
from mtl.on_ray.channel import Channel

TRAIN_LOST = (ControllerError, RayActorError, OutOfMemoryError)
"""As what Train's own actors end: by an error of theirs, killed, or ended by Ray's memory monitor."""


def killed_for_memory(error: BaseException) -> bool:
    """Whether Ray's memory monitor ended the worker that failed with `error`."""
    return isinstance(_underlying(error), OutOfMemoryError)


def first_line(error: BaseException) -> str:
    """What it says first; Ray may go on for pages."""
    error = _underlying(error)
    if isinstance(error, RayActorError):
        return "its process died"
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _underlying(error: BaseException) -> BaseException:
    return getattr(error, "health_check_failure", error)


@final
class Failures(UserCallback):
    """Tells the driver, and ends the job at once for an error that no restart can mend.

    Args:
        channel: to the driver.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def after_exception(self, run_context: TrainRunContext, worker_exceptions: dict[int, Exception]) -> None:
        """Raise the error that no restart can mend: Ray never retries what a callback raises.

        Raises:
            MtlError: of a worker, unless storage failed: that may pass.
        """
        for error in worker_exceptions.values():
            if isinstance(error, MtlError) and not may_pass(error):
                raise error
        for rank, error in worker_exceptions.items():
            text = f"worker {rank} failed: {first_line(error)}"
            if killed_for_memory(error):
                text = f"worker {rank} was ended by Ray, because its machine ran out of memory: {HOST}"
            self._channel.put({"kind": "note", "text": text})
            self._channel.put({"kind": "log", "source": f"worker-{rank}", "text": f"{error}\n"})
