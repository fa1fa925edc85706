import math

import pytest

from mtl import recipes
from mtl.errors import ConfigError
from mtl.sweep.proposals import Proposals, Random, Tpe, drawn, proposals
from mtl.sweep.record import Trial
from mtl.sweep.space import Space, search_space
from tests.helpers.sweeps import sweep_of

SPACE = search_space(recipes.get("shapes"), {})
TARGET = (0.7, 0.2, 0.6, 0.4, 0.5)


def score(trial: Trial) -> float | None:
    return None if trial.status == "started" else -math.dist(trial.point, TARGET)


def trial_at(number: int, point: list[float], status: str = "finished", epoch: int = 4) -> Trial:
    return Trial(id=f"t{number}", kind="sampled", point=tuple(point), status=status, epoch=epoch)


def searched(chosen: Proposals, trials: int) -> list[Trial]:
    past: list[Trial] = []
    for number in range(trials):
        past.append(trial_at(number, chosen.propose(number, past)))
    return past


def test_random_points_depend_on_seed_and_number_alone() -> None:
    first = [Random(SPACE, 1).propose(number, []) for number in range(20)]
    assert [Random(SPACE, 1).propose(number, [trial_at(0, list(TARGET))]) for number in range(20)] == first
    assert Random(SPACE, 2).propose(0, []) != first[0]
    assert len({tuple(point) for point in first}) == 20
    assert all(0 <= u < 1 for point in first for u in point)


def test_tpe_finds_better_points_than_chance() -> None:
    learnt = searched(Tpe(SPACE, 0, 8, score), 40)
    chance = searched(Random(SPACE, 0), 40)
    assert sum(score(t) or 0 for t in learnt[20:]) > 1.5 * sum(score(t) or 0 for t in chance[20:])


def test_a_restored_tpe_goes_on_as_if_it_had_never_stopped() -> None:
    whole = searched(Tpe(SPACE, 3, 2, score), 9)
    assert Tpe(SPACE, 3, 2, score).propose(8, whole[:8]) == list(whole[8].point)


def test_tpe_takes_trials_of_every_kind_of_end() -> None:
    ends = ("finished", "pruned", "started", "failed", "finished", "pruned")
    past = [trial_at(n, Random(SPACE, 0).propose(n, []), status, epoch=n) for n, status in enumerate(ends)]
    without = [trial for trial in past if trial.status != "failed"]
    assert Tpe(SPACE, 0, 2, score).propose(6, past) == Tpe(SPACE, 0, 2, score).propose(6, without)
    assert len(Tpe(SPACE, 0, 2, lambda _: -math.inf).propose(6, past)) == len(SPACE.axes)


def test_points_under_way_keep_new_ones_away() -> None:
    line = Space({"optimizer.lr": SPACE.ranges["optimizer.lr"]}, ())
    past = [trial_at(n, [n / 10]) for n in range(10)]

    def near(trial: Trial) -> float | None:
        return None if trial.status == "started" else -abs(trial.point[0] - 0.5)

    busy = [trial_at(10 + n, [0.49 + 0.002 * n], "started") for n in range(10)]
    alone = Tpe(line, 0, 2, near).propose(20, past)[0]
    crowded = Tpe(line, 0, 2, near).propose(20, [*past, *busy])[0]
    assert abs(alone - 0.5) < abs(crowded - 0.5)


@pytest.mark.parametrize(("trials", "axes", "expected"), [(1, 2, 2), (8, 2, 2), (24, 2, 6), (100, 2, 6), (12, 6, 4)])
def test_some_trials_are_drawn_before_any_is_learnt_from(trials: int, axes: int, expected: int) -> None:
    assert drawn(trials, ["a"] * axes) == expected


def test_tpe_without_optuna_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(ConfigError, match="needs Optuna"):
        proposals(sweep_of(search="tpe"), SPACE, score)
    assert isinstance(proposals(sweep_of(search="random"), SPACE, score), Random)
