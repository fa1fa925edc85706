"""Balancing from the configuration through whole jobs: what is asked for acts, and resumes from a commit bit by bit."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mtl.balancing_config import Balancing
from mtl.config import Checkpoint, Config
from tests.helpers.datasets import tiny
from tests.helpers.engine import SMALL, rows, tiny_config
from tests.helpers.whole_jobs import assert_same_end, interrupted, run

pytestmark = pytest.mark.usefixtures("numerics_as_before")

OWN = "tests.unit.balancing.test_balancing_signals:Fixed"
WAYS: dict[str, dict[str, Any]] = {
    "upgrad": {"method": "upgrad"},
    "mgda, a step late, by samples": {"method": "mgda", "lag": 1, "statistic": "samples"},
    "nash-mtl, exact every third step": {"method": "nash-mtl", "backend": "exact", "refresh_steps": 3},
    "gradvac": {"method": "gradvac"},
    "famo": {"method": "famo"},
    "a class of the user's": {"method": OWN},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("balancing")
    tiny(folder / "data")
    return folder / "data"


def config(data: Path, storage: Path, name: str, **changes: Any) -> Config:
    """Three epochs of three steps."""
    return tiny_config(data, storage, name, **{"epochs": 3, "model": SMALL, **changes})


def losses(config: Config) -> list[dict[str, float]]:
    return [row["loss"] for key, row in rows(config).items() if key[0] is not None]  # type: ignore[index]


@pytest.mark.parametrize("way", WAYS)
def test_a_resumed_job_goes_on_to_the_bit(
    way: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    balancing = Balancing(**WAYS[way])
    often = Checkpoint(every_s=1e-9, background=False)
    whole = config(data, tmp_path, "whole", balancing=balancing)
    parted = config(data, tmp_path, "tiny", balancing=balancing, checkpoint=often)
    run(whole)
    interrupted(parted, monkeypatch, 5)  # of nine; the exact matrix is of step 3
    assert_same_end(parted, whole)
    plain = config(data, tmp_path, "plain")
    run(plain)
    assert losses(whole) != losses(plain)


def test_options_of_a_method_act(data: Path, tmp_path: Path) -> None:
    ends: list[Any] = []
    for name, options in (
        ("joint", {}),
        ("samples", {"statistic": "samples"}),
        ("linear", {"statistic": "linear"}),
        ("late", {"lag": 1}),
        ("exact", {"backend": "exact"}),
        ("seldom", {"backend": "exact", "refresh_steps": 3}),
    ):
        one = config(data, tmp_path, name, epochs=2, balancing=Balancing(method="mgda", **options))
        run(one, torch.float64)
        ends.append(losses(one))
    assert all(one != other for at, one in enumerate(ends) for other in ends[:at])
