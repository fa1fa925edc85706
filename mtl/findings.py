"""What checks of a job found, shown as they find it. No check can make a person wait for ever."""

import threading
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

from mtl.errors import MtlError

Level = Literal["ok", "warn", "fail"]
Show = Callable[[str], object]

_INDENT = " " * 6


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        about: what was looked at, in a word.
        what: what was found, in a sentence.
        why: what lies behind it, or what follows from it; '' where all is well.
        mend: what to do.
    """

    level: Level
    about: str
    what: str
    why: str = ""
    mend: str = ""

    @classmethod
    def of(cls, about: str, error: MtlError) -> Self:
        """The failure that `error` tells of."""
        told = [f"got {error.got}"] * (error.got is not None) + [f"expected {error.expected}"] * (
            error.expected is not None
        )
        return cls("fail", about, error.what, "; ".join(told), error.do or "")

    def __str__(self) -> str:
        rows = [f"{self.level:<4}  {self.about:<9} {self.what}"]
        rows += [f"{name:<4}{' ' * 12}{text}" for name, text in (("why", self.why), ("mend", self.mend)) if text]
        return "\n".join(rows).replace("\n", "\n" + _INDENT)


@dataclass(frozen=True)
class Check:
    """Something to look at.

    Attributes:
        about: what, in a word.
        run: looks; may raise instead of returning a failure.
        limit_s: seconds after which an answer is no longer waited for.
    """

    about: str
    run: Callable[[], Iterable[Finding]]
    limit_s: float = 20.0


def examine(checks: Iterable[Check], show: Show) -> list[Finding]:
    """Run the checks one after another, and show each finding at once."""
    found: list[Finding] = []
    for check in checks:
        for finding in _within(check):
            show(str(finding))
            found.append(finding)
    return found


def conclude(found: Sequence[Finding], show: Show) -> int:
    """Show how many there are of each kind. Returns the exit status: 2 if anything failed, else 0."""
    ok, warned, failed = (sum(finding.level == level for finding in found) for level in ("ok", "warn", "fail"))
    verdict = "mend the failures first" if failed else "ready" if not warned else "ready, with reservations"
    show(f"{ok} ok, {warned} to consider, {failed} failed: {verdict}")
    return 2 if failed else 0


def _within(check: Check) -> list[Finding]:
    found: list[Finding] = []
    done = threading.Event()

    def run() -> None:
        try:
            found.extend(check.run())
        except MtlError as error:
            found.append(Finding.of(check.about, error))
        except Exception as error:
            found.append(_surprise(check.about, error))
        finally:
            done.set()

    # A daemon: what hangs in a system call can not be stopped, only left behind.
    threading.Thread(target=run, name=f"check {check.about}", daemon=True).start()
    if done.wait(check.limit_s):
        return found
    return [
        *found,
        Finding(
            "fail",
            check.about,
            f"There was no answer within {check.limit_s:g} s.",
            "something that this check talks to is unreachable, or very slow",
            "check the network, the addresses, and that the servers run",
        ),
    ]


def _surprise(about: str, error: Exception) -> Finding:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return Finding(
        "fail",
        about,
        f"{type(error).__name__}: {error}",
        f"an error that mtl does not know, raised in {last.filename}, line {last.lineno}",
        "if the message does not say what to do, report it",
    )
