"""The part of the configuration that says how the tasks' losses become one."""

from typing import Literal, Self

from pydantic import model_validator

from mtl.errors import ConfigError
from mtl.schema import Arguments, Section, identity


class Balancing(Section):
    """How the tasks' losses become one: docs/balancing.md compares the methods and says what each backend costs."""

    method: str = identity("static", "static (the tasks' own weights), another name, or module:Class of your own")
    arguments: Arguments = identity({}, "keyword arguments of the method")
    backend: Literal["scalar", "boundary", "exact"] | None = identity(
        None,
        "losses alone | gradients where they enter the shared part | gradients of all shared parameters; "
        "None is boundary where the method looks at gradients, else scalar",
    )
    statistic: Literal["joint", "samples", "linear"] = identity(
        "joint", "boundary: both of what follows | products sample by sample | gradients of a virtual linear layer"
    )
    refresh_steps: int = identity(1, "exact: steps from one Gram matrix to the next", ge=1)
    lag: int = identity(0, "1 weighs by the step before: nothing waits, and a batch may be accumulated", ge=0, le=1)

    @model_validator(mode="after")
    def _fits_backend(self) -> Self:
        misplaced = {
            f"refresh_steps={self.refresh_steps}": self.refresh_steps > 1 and self.backend != "exact",
            f"lag={self.lag}": self.lag > 0 and self.backend == "exact",
            f"statistic={self.statistic}": self.statistic != "joint" and self.backend in ("scalar", "exact"),
        }
        if any(misplaced.values()):
            raise ConfigError(
                "balancing has an option that its backend does not know.",
                got=f"backend={self.backend}, " + ", ".join(name for name, wrong in misplaced.items() if wrong),
                expected="refresh_steps with exact, lag with scalar or boundary, statistic with boundary",
                do="change the backend, or leave the option out",
            )
        return self
