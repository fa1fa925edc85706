"""When a doomed node's run commits, told by notices that are made up."""

import pytest
from ray.train.v2.api.preemption import PreemptionInfo

from mtl.on_ray.preemption import MARGIN_S, Preemption


class Doomed:
    """A run that is asked once a second from `now_s` on."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.notice: PreemptionInfo | None = None
        self.said: list[str] = []
        self.preemption = Preemption(lambda: self.notice, self.said.append, clock=lambda: self.now_s)

    def announce(self, deadline_s: float | None, **nodes: list[int]) -> None:
        self.notice = PreemptionInfo(None if deadline_s is None else round(deadline_s * 1000), nodes)

    def commits(self, until_s: float) -> list[float]:
        """When a commit was asked for."""
        asked: list[float] = []
        while self.now_s < until_s:
            if self.preemption():
                asked.append(self.now_s)
            self.now_s += 1
        return asked


@pytest.fixture
def run() -> Doomed:
    return Doomed()


def test_without_a_notice_nothing_is_asked(run: Doomed) -> None:
    assert run.commits(until_s=2000) == []


@pytest.mark.parametrize("commit_s", [0.0, 4.0, 30.0])
def test_commits_at_the_notice_and_before_the_deadline(run: Doomed, commit_s: float) -> None:
    run.preemption.took(commit_s)
    run.announce(1120, a=[2, 3])
    assert run.commits(until_s=1300) == [1000, 1120 - 2 * commit_s - MARGIN_S]
    assert run.said == ["the node of worker 2, 3 goes in 120 s: committing, going on"]


def test_the_commit_at_the_notice_says_how_long_the_last_one_takes(run: Doomed) -> None:
    run.announce(1120, a=[0])
    assert run.commits(until_s=1001) == [1000]
    run.preemption.took(20)
    assert run.commits(until_s=1300) == [1120 - 40 - MARGIN_S]


def test_a_notice_that_comes_late_is_one_commit(run: Doomed) -> None:
    run.announce(1003, a=[0])
    assert run.commits(until_s=1300) == [1000]


def test_a_second_node_and_its_earlier_deadline_count(run: Doomed) -> None:
    run.announce(1120, a=[0])
    assert run.commits(until_s=1010) == [1000]
    run.announce(1060, a=[0], b=[1])
    assert run.commits(until_s=1300) == [1010, 1060 - MARGIN_S]
    assert len(run.said) == 2


def test_without_a_deadline_trains_own_counts(run: Doomed) -> None:
    run.announce(None, a=[0])
    assert run.commits(until_s=1300) == [1000, 1120 - MARGIN_S]
