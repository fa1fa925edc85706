"""When a run whose node is about to be taken away commits: at the notice, and again as late as is safe."""

import time
from collections.abc import Callable
from typing import final

from ray.train.v2._internal.constants import DEFAULT_PREEMPTION_DEADLINE_S
from ray.train.v2._internal.execution.context import get_train_context
from ray.train.v2.api.preemption import PreemptionInfo

MARGIN_S = 5.0
"""For the steps until all ranks agree, and for clocks that differ."""


def announced() -> PreemptionInfo | None:
    """What Train has told this worker of nodes that drain.

    `ray.train.get_preemption_info` would add a barrier of all ranks, 8.7 ms, to make them agree. Ours agree anyway, and
    Train tells every worker of every node.
    """
    return get_train_context().preemption_context.preemption_info


@final
class Preemption:
    """Asked between steps, whether the time for a commit has come.

    Args:
        notice: what is known of nodes that drain.
        say: told, in one sentence, of every node that is newly doomed.
        clock: Unix time in seconds, as in notices.
    """

    def __init__(
        self,
        notice: Callable[[], PreemptionInfo | None],
        say: Callable[[str], None],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._notice, self._say, self._clock = notice, say, clock
        self._doomed: set[str] = set()
        self._unannounced_s = 0.0
        self._served_s: float | None = None
        self._commit_s = 0.0

    def took(self, commit_s: float) -> None:
        """Take note of how long a commit took."""
        self._commit_s = commit_s

    def __call__(self) -> bool:
        """True once for each newly doomed node, and once ahead of each deadline, by two commits and a margin."""
        found = self._notice()
        if found is None:
            return False
        now_s = self._clock()
        fresh = set(found.preempted_node_ids) - self._doomed
        if fresh and not self._doomed:
            self._unannounced_s = now_s + DEFAULT_PREEMPTION_DEADLINE_S  # so long Train waits where nobody says
        deadline_s = self._unannounced_s if found.deadline_ms is None else found.deadline_ms / 1000
        if fresh:
            self._doomed |= fresh
            ranks = ", ".join(map(str, found.preempted_ranks))
            self._say(f"the node of worker {ranks} goes in {max(deadline_s - now_s, 0):.0f} s: committing, going on")
        last = deadline_s - now_s <= 2 * self._commit_s + MARGIN_S and self._served_s != deadline_s
        if last:
            self._served_s = deadline_s
        return bool(fresh) or last
