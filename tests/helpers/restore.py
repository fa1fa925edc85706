"""Restoring at every position: what is left of a run is what the run that was never disturbed had left."""

from collections.abc import Callable, Iterable, Mapping

Deliver = Callable[[range, int], Mapping[int, object]]
"""What each of `steps` holds, over all ranks, on that many workers: anything that can be compared, by step."""


def assert_restores(deliver: Deliver, steps: int, world_sizes: Iterable[int]) -> None:
    """Stop before each of `steps` steps, and after the last; go on with each number of workers.

    One worker that is never disturbed says what is right.
    """
    whole = deliver(range(steps), 1)
    assert [*whole] == [*range(steps)]
    for world_size in world_sizes:
        for start in range(steps + 1):
            rest = deliver(range(start, steps), world_size)
            assert rest == {step: whole[step] for step in range(start, steps)}, (
                f"restored before step {start} on {world_size} workers, {steps} steps in all"
            )
