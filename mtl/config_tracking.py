"""The section of the configuration that says where metrics go."""

from typing import Self

from pydantic import model_validator

from mtl.errors import ConfigError
from mtl.schema import Arguments, Section, placement


class Tracking(Section):
    """Where metrics go besides metrics/*.jsonl, which are always written: see docs/operations.md."""

    tensorboard: bool = placement(True, "event files in tensorboard/ of the run")
    own: str | None = placement(None, "a tracker of your own: module:Class", pattern=r"^[\w.]+:\w+$")
    arguments: Arguments = placement({}, "keyword arguments of your own tracker")

    @model_validator(mode="after")
    def _belongs_together(self) -> Self:
        if self.arguments and self.own is None:
            raise ConfigError(
                "tracking.arguments are those of a tracker of your own.",
                got=", ".join(self.arguments),
                do="name it in tracking.own, or leave them out",
            )
        return self
