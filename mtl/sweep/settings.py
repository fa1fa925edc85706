"""What a person asks of a sweep, on the command line or in a file."""

from pathlib import Path
from typing import Annotated, Literal, Self

import tyro
import yaml
from pydantic import Field, model_validator

from mtl.errors import ConfigError
from mtl.schema import Section


class Range(Section):
    """What a sweep may choose for a number."""

    low: float = Field(description="smallest value")
    high: float = Field(description="largest value")
    scale: Literal["linear", "log"] = Field("linear", description="even in the value, or in its logarithm")

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if not self.low < self.high or (self.scale == "log" and self.low <= 0):
            raise ConfigError(
                "A range of the search space is empty.",
                got=f"low {self.low:g}, high {self.high:g}, scale {self.scale}",
                expected="low < high" + (", and low > 0 on the scale log" if self.scale == "log" else ""),
                do="mend the range in the sweep file",
            )
        return self


# From left to right, because a Section answers what it can not be with an error of its own, and that ends a union.
Choice = Annotated[Literal["simplex", None] | Range, Field(union_mode="left_to_right")]


class Sweep(Section):
    """How to search, for what, and how long."""

    trials: int = Field(16, ge=1, description="trials with sampled values; the baselines come on top")
    search: Literal["tpe", "random"] = Field("tpe", description="how points are chosen: learnt from trials, or drawn")
    metric: str = Field(
        "delta_m",
        description="what decides, on validation: delta_m (mean gain over single-task models), or TASK/METRIC",
    )
    seed: int = Field(0, ge=0, description="seed of the choice of points; every trial trains with the recipe's own")
    grace: int | None = Field(None, ge=1, description="epochs no trial is pruned before; None is a quarter of all")
    reduction: int = Field(3, ge=2, description="one in this many of the trials at a rung goes on")
    concurrent: int | None = Field(None, ge=1, description="most trials at a time; None is as many as fit")
    retry_failed: bool = Field(False, description="try failed trials again")
    space: Annotated[dict[str, Choice], tyro.conf.Suppress] = Field(
        {}, description="ranges beside or instead of the configuration's own; null leaves a field as it is"
    )
    starts: Annotated[tuple[dict[str, float], ...], tyro.conf.Suppress] = Field(
        (),
        description="points to try first, by dotted name: of weights the shares count, other fields keep their values; "
        "jobs/distil.py writes one",
    )


def load(path: Path) -> Sweep:
    """Read a sweep file.

    Raises:
        ConfigError: it can not be read, is not YAML, or holds what no sweep knows.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"The sweep file {path} can not be read.",
            got=" ".join(str(error).split()),
            expected="a YAML file with keys such as trials, metric and space",
            do="name another file; docs/operations.md shows one",
        ) from error
    try:
        return Sweep.model_validate({} if values is None else values)
    except ConfigError as error:
        do = "mend the file; docs/operations.md shows one, python jobs/tune.py --help explains the keys"
        raise ConfigError(f"{path}: {error.what}", got=error.got, expected=error.expected, do=do) from error
