"""How many images may be undecodable before a run stops."""

from mtl.config import Config
from mtl.data.batch import Batch
from mtl.errors import DataError


def check_budget(config: Config, batch: Batch, quarantined: int, step: int, steps_per_epoch: int) -> None:
    """Do nothing while `quarantined` images are a share within loader.error_budget of the samples seen.

    In the first epoch it is a share of the whole epoch: the first image may be a bad one.

    Args:
        batch: the last one.
        step: steps done.

    Raises:
        DataError: they are more.
    """
    seen = step * config.global_batch
    if quarantined <= config.loader.error_budget * max(seen, steps_per_epoch * config.global_batch):
        return
    bad = f"{batch.bad[0].shard}, row {batch.bad[0].row}: {batch.bad[0].reason}" if batch.bad else "on another worker"
    raise DataError(
        "Too many images can not be decoded.",
        got=f"{quarantined} of {seen} samples; the last: {bad}",
        expected=f"at most a share of {config.loader.error_budget} (loader.error_budget)",
        do="mend the data set (jobs/prepare.py checks every image), or raise the budget",
    )
