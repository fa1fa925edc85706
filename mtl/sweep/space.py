"""The space that a sweep searches: from points of a unit cube to values of a configuration's fields, and back."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from mtl.config import Config
from mtl.errors import ConfigError
from mtl.sweep.settings import Range

AROUND = 10.0
"""A field declared `log` is searched from its value divided by this to its value times this."""

_DIGITS = 4  # significant ones: a value is what the final command says, to the letter


@final
@dataclass(frozen=True)
class Space:
    """What is searched.

    Attributes:
        ranges: fields searched by themselves, by dotted name: one degree of freedom each.
        shares: fields that divide a fixed sum, their number, among them: one degree of freedom fewer than fields.
        whole: those of `ranges` that hold whole numbers.
    """

    ranges: Mapping[str, Range]
    shares: tuple[str, ...]
    whole: frozenset[str] = frozenset()

    @property
    def axes(self) -> tuple[str, ...]:
        """The names of the degrees of freedom."""
        return (*self.ranges, *(f"share {number}" for number in range(1, len(self.shares))))

    def values(self, point: Sequence[float]) -> dict[str, float]:
        """The values at `point`, one number in [0, 1] for each axis. Uniform points give uniform points of the simplex.

        Sticks are broken off: the share of the first of n is what the smallest of n - 1 uniform numbers would leave.
        """
        assert len(point) == len(self.axes), (point, self.axes)
        values: dict[str, float] = {}
        for (name, limits), u in zip(self.ranges.items(), point, strict=False):
            value = _between(limits, u)
            values[name] = float(round(value)) if name in self.whole else _rounded(value)
        left = float(len(self.shares))
        cuts = [1 - (1 - u) ** (1 / n) for n, u in zip(_remaining(self.shares), point[len(self.ranges) :], strict=True)]
        for name, cut in zip(self.shares, [*cuts, 1.0], strict=bool(self.shares)):
            values[name] = _rounded(left * cut)
            left -= left * cut
        return values

    def point(self, values: Mapping[str, float]) -> list[float] | None:
        """The point at which `values` lie, None if they lie outside the space."""
        point: list[float] = []
        for name, limits in self.ranges.items():
            if not limits.low <= values[name] <= limits.high:
                return None
            point.append(_share(limits, values[name]))
        left = float(len(self.shares))
        if not math.isclose(sum(values[name] for name in self.shares), left, rel_tol=0.01):
            return None
        for name, n in zip(self.shares, _remaining(self.shares), strict=False):
            cut = min(values[name] / left, 1.0) if left > 0 else 0.0
            point.append(1 - (1 - cut) ** n)
            left -= values[name]
        return point

    def declared(self) -> dict[str, Any]:
        """The space in plain values, as a sweep file could hold it."""
        ranges = {name: limits.model_dump() for name, limits in self.ranges.items()}
        return {**ranges, **dict.fromkeys(self.shares, "simplex")}


def search_space(config: Config, overrides: Mapping[str, Range | str | None]) -> Space:
    """What the fields of `config` declare, changed by `overrides`.

    Raises:
        ConfigError: a name that is no field with a number, a range that the field does not allow, or nothing to search.
    """
    declared: dict[str, Range | str | None] = {**config.search_space(), **overrides}
    ranges: dict[str, Range] = {}
    shares: list[str] = []
    for name, how in declared.items():
        if how is None:
            continue
        value = number_at(config, name)
        if isinstance(how, Range):
            ranges[name] = how
        elif how == "log":
            ranges[name] = Range(low=_rounded(value / AROUND), high=_rounded(value * AROUND), scale="log")
        elif value > 0:  # a task of weight 0 is only watched
            shares.append(name)
    space = Space(
        ranges,
        tuple(shares) if len(shares) > 1 else (),
        frozenset(name for name in ranges if isinstance(number_at(config, name), int)),
    )
    if not space.axes:
        raise ConfigError(
            "There is nothing to search.",
            got="one task, and no other range" if shares else "no range",
            expected="two tasks or more, or a range for some field",
            do="give a range in a sweep file: --sweep-file FILE",
        )
    for end in (0.0, 1.0):  # of the ranges: any shares are valid, but for a weight of exactly zero
        applied(config, space.values([end] * len(ranges) + [0.5] * (len(space.axes) - len(ranges))))
    return space


def applied(config: Config, values: Mapping[str, float]) -> Config:
    """`config` with the fields of these dotted names changed.

    Raises:
        ConfigError: the field does not allow the value.
    """
    tree = config.model_dump()
    for name, value in values.items():
        *sections, last = name.split(".")
        place = tree
        for section in sections:
            place = place[section]
        place[last] = int(value) if isinstance(number_at(config, name), int) else value
    return Config.model_validate(tree)


def number_at(config: Config, name: str) -> float:
    """The number in the field of this dotted name: an int if it holds whole ones.

    Raises:
        ConfigError: there is no such field, or no number in it.
    """
    place: Any = config
    for part in name.split("."):
        place = place.get(part) if isinstance(place, dict) else getattr(place, part, None)
    if isinstance(place, bool) or not isinstance(place, int | float):
        raise ConfigError(
            f"The search space names '{name}', which is no field that holds a number.",
            got="no such field" if place is None else f"{place!r}",
            expected="dotted names, such as optimizer.lr, tasks.NAME.weight or augment.brightness",
            do="mend the sweep file; python jobs/train.py RECIPE --help lists the fields",
        )
    return place


def _between(limits: Range, u: float) -> float:
    if limits.scale == "log":
        return limits.low * (limits.high / limits.low) ** u
    return limits.low + (limits.high - limits.low) * u


def _share(limits: Range, value: float) -> float:
    if limits.scale == "log":
        return math.log(value / limits.low) / math.log(limits.high / limits.low)
    return (value - limits.low) / (limits.high - limits.low)


def _remaining(shares: Sequence[str]) -> range:
    return range(len(shares) - 1, 0, -1)


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
