"""What a job takes of a cluster, and how long it waits there."""

from typing import Self

from pydantic import model_validator

from mtl.schema import Section, placement, refuse_unread


class Resources(Section):
    """What each worker gets."""

    workers: int = placement(2, "data-parallel workers", ge=1)
    min_workers: int | None = placement(
        None, "fewest workers that the run goes on with while nodes are missing; None: it waits for all", ge=1
    )
    resize_s: float = placement(
        600.0, "min_workers: seconds between looks for nodes that came; each gain is a restart", gt=0
    )
    cpus_per_worker: int = placement(1, "CPU cores of each worker", ge=1)
    gpu: bool = placement(False, "one GPU for each worker")
    accelerator: str | None = placement(None, "model of the GPUs, such as L4 or A10G; None takes any", min_length=1)
    price_per_hour: float | None = placement(
        None, "what a worker costs for an hour, in any currency: shows the cost of an epoch and of the run", gt=0
    )
    address: str | None = placement(None, "Ray cluster to join; None joins the one at hand or starts one here")
    max_failures: int = placement(3, "worker group restarts after failures", ge=0)
    pending_deadline_s: float = placement(
        3600.0, "seconds that workers may be waited for, at the start and after each loss", gt=0
    )
    first_step_deadline_s: float = placement(
        1800.0, "seconds without progress, before the first step, after which workers are killed and restarted", gt=0
    )
    step_deadline_s: float = placement(
        300.0, "the same after the first step; more than a commit, or storage that is away for a while, takes", gt=0
    )

    @model_validator(mode="after")
    def _belongs_together(self) -> Self:
        if self.min_workers is None:
            refuse_unread(self, ("resize_s",), "min_workers = None")
        return self
