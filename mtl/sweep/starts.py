"""Points that a sweep tries before any that it chooses itself, such as the weights that a balancer gave on average."""

from collections.abc import Mapping, Sequence

from mtl.config import Config
from mtl.errors import ConfigError
from mtl.sweep.space import Space, number_at

Point = tuple[float, ...]


def starting_points(config: Config, space: Space, starts: Sequence[Mapping[str, float]]) -> tuple[Point, ...]:
    """The points of the unit cube at which `starts` lie.

    Args:
        starts: values by dotted name; fields that are not named keep those of `config`, and of what divides a fixed
            sum only the shares count.

    Raises:
        ConfigError: a name that is not searched, or a value outside its range.
    """
    return tuple(_point(config, space, start) for start in starts)


def _point(config: Config, space: Space, start: Mapping[str, float]) -> Point:
    searched = (*space.ranges, *space.shares)
    values = {name: float(start.get(name, number_at(config, name))) for name in searched}
    total = sum(values[name] for name in space.shares)
    unknown = [name for name in start if name not in searched]
    if not unknown and all(values[name] >= 0 for name in space.shares) and (total > 0 or not space.shares):
        shared = {name: values[name] * len(space.shares) / total for name in space.shares}
        point = space.point({**values, **shared})
        if point is not None:
            return tuple(point)
    raise ConfigError(
        "A starting point of the sweep lies outside its space.",
        got=", ".join(f"{name} {value:g}" for name, value in start.items()),
        expected="values within the ranges of " + ", ".join(searched),
        do="mend `starts` in the sweep file, or widen the space",
    )
