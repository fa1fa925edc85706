"""The process through which driver and workers speak, killed at any time."""

import io
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import ray
from ray.exceptions import OutOfMemoryError
from ray.train.torch import TorchTrainer

from mtl.config import Checkpoint, Config, Resources
from mtl.console import RunConsole
from mtl.on_ray import train
from mtl.on_ray.channel import Channel, ChannelLost
from tests.helpers import nodes
from tests.helpers.datasets import tiny
from tests.helpers.jobs import ended_well, tiny_config, undisturbed

# Ray's own warnings are not ours to mend.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Channel]:
    """The channels made by drivers in this process."""
    channels: list[Channel] = []

    def remembered(missing: Callable[[], None]) -> Channel:
        channels.append(Channel(missing))
        return channels[-1]

    monkeypatch.setattr(train, "Channel", remembered)
    return channels


def kill(channel: Channel) -> None:
    pid = ray.get(channel._mailbox.__ray_call__.remote(lambda _: os.getpid()))  # pyright: ignore
    os.kill(pid, signal.SIGKILL)


class Killing:
    """A console; the first channel dies when the first event `of` a kind is shown."""

    def __init__(self, made: list[Channel], of: str) -> None:
        self._console, self._made, self._of, self.said = RunConsole(said := io.StringIO()), made, of, said

    def line(self, text: str) -> None:
        self._console.line(text)
        self._strike("line" if text.startswith("starting") else "")

    def __call__(self, event: dict[str, Any]) -> None:
        self._console(event)
        self._strike(event["kind"])

    def _strike(self, kind: str) -> None:
        if kind == self._of and len(self._made) == 1:
            self._of = ""
            kill(self._made[0])


def trained(config: Config, console: Killing) -> dict[str, Any]:
    return train.train(config, cast("RunConsole", console))


def test_the_workers_start_anew_when_nobody_hears_them(made: list[Channel], tmp_path: Path) -> None:
    tiny(tmp_path / "data")
    checkpoint = Checkpoint(background=False)
    config = tiny_config(tmp_path / "data", tmp_path / "runs", epochs=4, checkpoint=checkpoint)
    console = Killing(made, "commit")
    result = trained(config, console)
    assert len(made) == 2
    assert "begins anew: The process through which driver and workers speak has died." in console.said.getvalue()
    ended_well(config, attempts=2)
    assert result["ledger"] == undisturbed(config)["ledger"]


def test_it_counts_among_the_failures_allowed(made: list[Channel], tmp_path: Path) -> None:
    tiny(tmp_path / "data")
    config = tiny_config(tmp_path / "data", tmp_path / "runs", epochs=40, resources=Resources(max_failures=0))
    with pytest.raises(ChannelLost, match="has died") as caught:
        trained(config, Killing(made, "progress"))
    assert "resumes from the last commit" in str(caught.value)
    assert len(made) == 1
    assert not nodes.claims()


def test_a_controller_that_ray_ends_for_memory_begins_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fit, fits = train.TorchTrainer.fit, 0

    def ended_once(self: TorchTrainer) -> ray.train.Result:
        nonlocal fits
        fits += 1
        if fits == 1:
            raise OutOfMemoryError("6 worker(s) were killed\nand pages more")
        return fit(self)

    monkeypatch.setattr(train.TorchTrainer, "fit", ended_once)
    tiny(tmp_path / "data")
    config, said = tiny_config(tmp_path / "data", tmp_path / "runs", epochs=2), io.StringIO()
    train.train(config, RunConsole(said))
    assert "begins anew: 6 worker(s) were killed\n" in said.getvalue()
    assert "pages more" not in said.getvalue()
    ended_well(config, attempts=1)
