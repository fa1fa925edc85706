"""What is passed over after a streak of bad steps, as a function of commits and of what was passed over before."""

import json

import pytest

from mtl.errors import MtlError
from mtl.record import Commit, Skipped
from mtl.rewind import BAD_STEPS, Rewind, images, passed_over, persevere, plan
from tests.helpers.memory_store import MemoryStore
from tests.helpers.runs import make_commit


def span(first: int, last: int) -> Skipped:
    return Skipped(first=first, last=last, images=f"skipped/step-{first:09d}-{last:09d}.json")


COMMITS = (make_commit(100), make_commit(50))


@pytest.mark.parametrize(
    ("commits", "good"),
    [
        (COMMITS, COMMITS),
        (COMMITS[1:], COMMITS[1:]),
        ((), ()),
        ((make_commit(124), *COMMITS), COMMITS),
        ((make_commit(128), make_commit(124)), (make_commit(124),)),
    ],
)
def test_a_first_streak_is_passed_over_by_itself(commits: tuple[Commit, ...], good: tuple[Commit, ...]) -> None:
    assert plan(Rewind(120, 129), commits, ()) == (good, span(120, 129))


def test_a_streak_elsewhere_is_a_first_one_too() -> None:
    assert plan(Rewind(120, 129), COMMITS, [span(20, 29)]) == (COMMITS, span(120, 129))


@pytest.mark.parametrize("first", [125, 130, 139])
def test_a_streak_that_goes_on_takes_all_since_the_commit_along(first: int) -> None:
    # The commit of step 128 was made while steps were passed over.
    commits = (make_commit(128), *COMMITS)
    assert plan(Rewind(first, first + 9), commits, [span(120, 129)]) == (COMMITS, span(100, first + 9))


@pytest.mark.parametrize("commits", [COMMITS, ()])
def test_a_streak_after_everything_since_the_commit_is_divergence(commits: tuple[Commit, ...]) -> None:
    before = [span(120, 129), span(100 if commits else 0, 139)]
    with pytest.raises(MtlError, match=f"{BAD_STEPS} steps in a row") as caught:
        plan(Rewind(140, 149), commits, before)
    assert caught.value.got == "steps 140 to 149, soon after steps that were passed over"


def test_what_is_passed_over() -> None:
    spans = [span(3, 5), span(5, 6)]
    assert passed_over(spans) == {3, 4, 5, 6}
    store = MemoryStore()
    for one, names in zip(spans, (["a", "b"], ["b", "c"]), strict=True):
        store.put(one.images, json.dumps({"images": names}).encode())
    assert images(store, spans) == ["a", "b", "b", "c"]


def test_a_run_is_called_until_it_ends() -> None:
    left = [Rewind(1, 2), Rewind(3, 4)]

    def run() -> dict[str, object]:
        if left:
            raise left.pop()
        return {"status": "finished"}

    assert persevere(run) == {"status": "finished"}
    assert not left
