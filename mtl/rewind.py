"""What a run does about many steps in a row whose loss or gradient is not finite.

One such step is skipped, by all ranks together, and leaves no trace in the state. BAD_STEPS of them in a row are more
than an accident: the run goes back to its last commit, as after a restart, and passes the samples of those steps over.
Where the streak then goes on, the fault may be in what was trained before it: everything since that commit is passed
over (Chowdhery et al., "PaLM", 2022, section 5.1). Where even that does not help, training has diverged.

What is passed over is in run.json, so every later attempt does the same, on any number of workers.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, final

import torch

from mtl.attempt import Attempt
from mtl.errors import MtlError
from mtl.record import Commit, Skipped, read
from mtl.runtime import Runtime
from mtl.store import Store

BAD_STEPS = 10
"""Consecutive steps without a finite gradient after which the run goes back to its last commit."""


@final
class Rewind(Exception):
    """The run is to go back because of the steps `first` to `last`; raised by all ranks at the same step."""

    def __init__(self, first: int, last: int) -> None:
        super().__init__(first, last)
        self.first, self.last = first, last


def passed_over(skipped: Sequence[Skipped]) -> frozenset[int]:
    """The steps that are not to be trained."""
    return frozenset(step for span in skipped for step in range(span.first, span.last + 1))


def plan(rewind: Rewind, commits: Sequence[Commit], skipped: Sequence[Skipped]) -> tuple[tuple[Commit, ...], Skipped]:
    """The commits that are left to go back to, newest first, and what is passed over.

    A commit from within the streak, or from what was passed over up to BAD_STEPS before it, is as suspect as they are.

    Args:
        commits, skipped: as in run.json.

    Raises:
        MtlError: everything since the commit was passed over before, and the streak went on.
    """
    touching = [span for span in skipped if span.first <= rewind.first <= span.last + BAD_STEPS]
    began = min([rewind.first, *(span.first for span in touching)])
    good = tuple(commit for commit in commits if commit.step <= began) or tuple(commits[-1:])
    if not touching:
        return good, _span(rewind.first, rewind.last)
    base = good[0].step if good else 0
    if began <= base:
        raise MtlError(
            f"Training diverged: {BAD_STEPS} steps in a row had no finite gradient, and as many after going back.",
            got=f"steps {rewind.first} to {rewind.last}, soon after steps that were passed over",
            do="lower optimizer.lr, or set optimizer.clip_norm; the last commit is from before these steps",
        )
    return good, _span(base, rewind.last)


def pass_over(
    rewind: Rewind,
    store: Store,
    attempt: Attempt | None,
    runtime: Runtime,
    skipped: Sequence[Skipped],
    names: Callable[[range], list[str]],
) -> str:
    """Record what is passed over, and drop the commits from within the streak; called by every rank.

    Args:
        store: the run.
        attempt: the right to do so; rank 0 only.
        skipped: as it was when this attempt began.
        names: the ids of the images of some steps.

    Returns:
        A sentence that says so.

    Raises:
        MtlError: on all ranks; see `plan`.
        RunLost: the run has another owner, or a newer attempt has begun.
        StoreError: storage failed.
    """
    record = read(store)
    good, span = plan(rewind, record.checkpoints if record else (), skipped)
    runtime.sum(torch.zeros(1))  # every rank reads the record before it changes ...
    if attempt is not None:
        found = {"first_step": span.first, "last_step": span.last, "images": names(range(span.first, span.last + 1))}
        store.put(span.images, json.dumps(found, indent=1).encode())
        attempt.change(lambda now: {"skipped": (*now.skipped, span), "checkpoints": good})
    runtime.sum(torch.zeros(1))  # ... and begins anew after
    base = good[0].step if good else 0
    return (
        f"{BAD_STEPS} steps in a row have no finite gradient: going back to step {base:,}, and passing over the images "
        f"of steps {span.first:,} to {span.last:,}, which are named in {store.uri}/{span.images}"
    )


def images(store: Store, skipped: Sequence[Skipped]) -> list[str]:
    """The ids of the images that a run has passed over.

    Raises:
        StoreError: storage can not be read.
    """
    return [image for span in skipped for image in json.loads(store.get(span.images))["images"]]


def persevere(run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result of `run`, called again after each rewind: it resumes from the last commit."""
    while True:
        try:
            return run()
        except Rewind:
            continue


def _span(first: int, last: int) -> Skipped:
    return Skipped(first=first, last=last, images=f"skipped/step-{first:09d}-{last:09d}.json")
