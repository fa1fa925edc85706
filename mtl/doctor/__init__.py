"""The checks of a job before it runs, each by itself, so that one visit finds everything that is wrong.

What needs Ray is in mtl/on_ray/doctor.py. Torch is loaded only for the step.
"""

from mtl.doctor.case import Case
from mtl.doctor.dataset import data, data_if_there, labels, order
from mtl.doctor.process import STEP_LIMIT_S, batch, software, step, step_if_known
from mtl.doctor.runs import run, storage
from mtl.findings import Check
from mtl.store import open_store

__all__ = ["STEP_LIMIT_S", "Case", "dry_run", "examination", "local_step", "step"]


def examination(case: Case) -> list[Check]:
    """Everything that can be looked at from this process without Ray; `case` is filled in on the way."""
    config = case.config
    return [
        Check("software", software),
        Check("batch", lambda: batch(config)),
        Check("data", lambda: data(case)),
        Check("labels", lambda: labels(case)),
        Check("order", lambda: order(case)),
        Check("storage", lambda: storage(open_store(config.storage))),
        Check("run", lambda: run(config)),
    ]


def local_step(case: Case) -> Check:
    """One step in this process, for a job that runs in one."""
    config = case.config
    return Check("step", lambda: step(config, case.manifest, gpu=config.resources.gpu), STEP_LIMIT_S)


def dry_run(case: Case) -> list[Check]:
    """What can be looked at without writing anywhere, the data set included where it is there, and one step here."""
    return [
        Check("software", software),
        Check("batch", lambda: batch(case.config)),
        Check("data", lambda: data_if_there(case)),
        Check("labels", lambda: labels(case)),
        Check("order", lambda: order(case)),
        Check("step", lambda: step_if_known(case), STEP_LIMIT_S),
    ]
