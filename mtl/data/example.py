"""One image with its labels, and many of them: what a data set is made from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

from mtl.data.labels import Value
from mtl.data.manifest import Label


@final
@dataclass(frozen=True, slots=True)
class Example:
    """One image with its labels. `read` returns the encoded bytes; it may be called from any thread."""

    id: str
    split: str
    labels: Mapping[str, Value]
    read: Callable[[], bytes]


@final
@dataclass(frozen=True)
class Source:
    """Examples with unique ids, and what their labels are.

    Attributes:
        presplit: whether the source itself says which split an example belongs to.
        notes: what a person should know about how this was read, one sentence each.
    """

    examples: list[Example]
    labels: dict[str, Label]
    presplit: bool
    notes: tuple[str, ...] = ()
