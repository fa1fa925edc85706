"""The section of the configuration that says when a run is evaluated, and what it does about it."""

from collections.abc import Iterator, Mapping

from mtl.schema import Section, resumable
from mtl.task_config import METRICS, Task


class Evaluation(Section):
    """Evaluations on the validation split, between epochs and at the end of the last one."""

    every_epochs: int = resumable(1, "epochs from one evaluation to the next", ge=1)
    best: str | None = resumable(
        None, "TASK/METRIC: the commit with the best one is kept beside the newest, and tested at the end"
    )
    patience: int | None = resumable(None, "evaluations in a row without a better one after which training ends", ge=1)


def better(tasks: Mapping[str, Task]) -> dict[str, bool]:
    """Each TASK/METRIC that tasks with a weight have, and whether larger is better."""
    return {
        f"{name}/{metric}": larger
        for name, task in tasks.items()
        if task.weight > 0
        for metric, larger in {**METRICS[task.kind], **task.further()}.items()
    }


def contradictions(evaluation: Evaluation, tasks: Mapping[str, Task]) -> Iterator[str]:
    """What is wrong with an evaluation of these tasks."""
    known = better(tasks)
    if evaluation.best is not None and evaluation.best not in known:
        yield f"evaluation.best ({evaluation.best}) must be one of {', '.join(known)}"
    if evaluation.patience is not None and evaluation.best is None:
        yield "evaluation.patience needs evaluation.best: a metric that is to get better"
