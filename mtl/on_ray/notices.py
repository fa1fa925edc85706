"""What Ray tells every driver in its own words, such as a paragraph for each process that was lost."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from ray._private import worker


@contextmanager
def diverted(keep: Callable[[str], None]) -> Generator[None]:
    """Meanwhile what Ray would print in the middle of ours goes to `keep`, from a thread of Ray's."""
    usual = worker.print_to_stdstream

    def divert(data: dict[str, Any], *_: Any, **__: Any) -> None:
        keep("".join(f"{line}\n" for line in data["lines"]))

    worker.print_to_stdstream = divert
    try:
        yield
    finally:
        worker.print_to_stdstream = usual
