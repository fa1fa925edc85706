"""Every error a user can cause or meet, and nothing else.

    MtlError                 exit status 2: something to mend, said in one message
      ConfigError            a value of the configuration, or two that contradict each other
      DataError              a data set that is missing, unreadable, or not what the configuration expects
      StoreError             storage refused or failed
        NotFound             no such bucket or object
        AccessDenied         the identity in use may not do this
        Conflict             a conditional write lost: somebody else wrote first
        NoSpace              the disk is full
        Truncated            an object is shorter than its description says
      RunError               the state of a run
        RunOwned             another live job owns this run
        RunLost              this job no longer owns the run: a newer attempt took over
      CheckpointError        a checkpoint is damaged, or belongs to another configuration
      ResourceError          the cluster can not supply what was asked for

A message answers four questions: what is wrong, what was got, what was expected, what to do.
"""

from typing import final


class MtlError(Exception):
    """Base of all errors shown without a traceback.

    Args:
        what: one sentence that names the thing and the fault.
        got: the offending value.
        expected: what would have been accepted; lists name every choice.
        do: the next action for the reader.
    """

    def __init__(self, what: str, *, got: object = None, expected: object = None, do: str | None = None) -> None:
        super().__init__(what, got, expected, do)
        self.what, self.got, self.expected, self.do = what, got, expected, do

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return _rebuild, (type(self), self.what, self.got, self.expected, self.do)

    def __str__(self) -> str:
        rows = [("got", self.got), ("expected", self.expected), ("do", self.do)]
        return "\n".join([self.what, *(f"  {label + ':':<10}{value}" for label, value in rows if value is not None)])


def _rebuild(kind: type[MtlError], what: str, got: object, expected: object, do: str | None) -> MtlError:
    return kind(what, got=got, expected=expected, do=do)


@final
class ConfigError(MtlError):
    """The configuration is wrong."""


@final
class DataError(MtlError):
    """The data set is missing, unreadable, or not what the configuration expects."""


class StoreError(MtlError):
    """Storage refused or failed."""


def may_pass(error: BaseException) -> bool:
    """Whether storage failed in a way that may be over soon; what its subclasses say does not pass by itself."""
    return type(error) is StoreError


@final
class NotFound(StoreError):
    """No such bucket or object."""


@final
class AccessDenied(StoreError):
    """The identity in use may not do this."""


@final
class NoSpace(StoreError):
    """The disk is full."""


@final
class Truncated(StoreError):
    """An object is shorter than its description says. Trying again would not mend it."""


@final
class Conflict(StoreError):
    """A conditional write lost the race."""


class RunError(MtlError):
    """The state of a run forbids this."""


@final
class RunOwned(RunError):
    """Another live job owns the run."""


@final
class RunLost(RunError):
    """This job no longer owns the run."""


@final
class CheckpointError(MtlError):
    """A checkpoint is damaged, or belongs to another configuration."""


@final
class ResourceError(MtlError):
    """The cluster can not supply what was asked for."""
