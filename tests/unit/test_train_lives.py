"""Lives of Ray Train within one job, which are made up: what begins it anew, what ends the job, what counts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.train import ControllerError, WorkerGroupError

from mtl.config import Config, Resources
from mtl.errors import DataError, ResourceError
from mtl.memory import HOST
from mtl.on_ray import train
from mtl.on_ray.channel import ChannelLost
from tests.helpers.jobs import tiny_config

OUT_OF_MEMORY = ControllerError(OutOfMemoryError("4 workers were killed\nand pages more"))
MISSING = DataError("A column is missing.")
Life = Callable[[Any], Any]


def dies(error: Exception, failures: int = 0) -> Life:
    """A life that ends with `error` after so many restarts of workers."""

    def life(listener: Any) -> Any:
        listener.failures = failures
        raise error

    return life


class Job:
    """`fit` with lives that follow each other, how many failures each began with, and what a person was told."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.began: list[int] = []
        self.told: list[str] = []
        self.stopping = False
        self._config: Callable[..., Config] = lambda **resources: tiny_config(
            tmp_path / "data", tmp_path / "runs", resources=Resources(**resources)
        )
        self._patch = monkeypatch
        monkeypatch.setattr(train, "Channel", lambda _: None)
        monkeypatch.setattr("mtl.on_ray.listener.Listener.abort", lambda _: True)

    def __call__(self, *lives: Life, max_failures: int = 3) -> Any:
        following = iter(lives)

        def live(*of: Any) -> Any:
            self.began.append(of[-1])
            return next(following)(of[2])

        self._patch.setattr(train, "_fit", live)
        config = self._config(max_failures=max_failures)
        return train.fit(config, "me", lambda event: self.told.append(event["text"]), lambda: self.stopping)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    return Job(tmp_path, monkeypatch)


def test_train_that_fails_begins_anew_with_the_restarts_that_are_left(job: Job) -> None:
    unheard = dies(ControllerError(ChannelLost("Nobody hears.")))
    lives = dies(OUT_OF_MEMORY, failures=2), dies(RayActorError()), unheard, lambda _: {"status": "finished"}
    assert job(*lives, max_failures=4) == {"status": "finished"}
    assert job.began == [0, 2, 3, 4]
    assert job.told == [
        "Ray Train failed and begins anew: 4 workers were killed",
        "Ray Train failed and begins anew: its process died",
        "Ray Train failed and begins anew: Nobody hears.",
    ]


def test_no_more_often_than_restarts_are_allowed(job: Job) -> None:
    with pytest.raises(
        ResourceError, match="A machine ran out of memory, and the restarts allowed are used up"
    ) as caught:
        job(dies(ChannelLost("Nobody hears.")), dies(OUT_OF_MEMORY), max_failures=1)
    assert job.began == [0, 1]
    assert (caught.value.got, caught.value.do) == ("4 workers were killed", HOST)


@pytest.mark.parametrize("error", [ControllerError(MISSING), WorkerGroupError("no", {0: MISSING})])
def test_an_error_of_ours_ends_the_job_unchanged(job: Job, error: Exception) -> None:
    with pytest.raises(DataError, match=r"A column is missing\."):
        job(dies(error))
    assert job.told == []


def test_a_job_that_stops_does_not_begin_anew(job: Job) -> None:
    job.stopping = True
    with pytest.raises(ResourceError):
        job(dies(OUT_OF_MEMORY))
    assert job.began == [0]
