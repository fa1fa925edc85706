"""augment.grow_from_px in whole runs: the sizes that the model sees, resumption, accumulation, what is reported."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mtl import preflight
from mtl.config import Augment, Config
from mtl.data.growth import Growth
from mtl.errors import ConfigError
from mtl.parts import build_model, build_specs
from tests.helpers.datasets import tiny
from tests.helpers.engine import GROUP_NORM, SMALL, assert_same_run, result_of, rows, store_of, tiny_config
from tests.helpers.sizes import MADE
from tests.helpers.whole_jobs import interrupted, run

pytestmark = pytest.mark.usefixtures("numerics_as_before")

GROWING = Augment(size_px=16, grow_from_px=8, crop="padded", contrast=0.1, eval_resize_px=16)
SIDES = [8] * 5 + [12] * 5 + [16] * 2  # of twelve steps: four pixels more with each 4.8


ANY_SIZE = SMALL.model_copy(update={"backbone": "tests.helpers.sizes:sizes"})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("growing")
    tiny(folder / "data")
    return folder / "data"


def config(data: Path, storage: Path, name: str = "tiny", **changes: Any) -> Config:
    """Four epochs of three steps."""
    return tiny_config(data, storage, name, **{"epochs": 4, "augment": GROWING, "model": GROUP_NORM, **changes})


def test_the_model_sees_images_that_grow_and_full_ones_in_evaluation(data: Path, tmp_path: Path) -> None:
    growing, before = config(data, tmp_path, model=ANY_SIZE), len(MADE)
    run(growing)
    seen = next(made for made in MADE[before:] if made.trained)
    assert [side for _, side in seen.trained] == SIDES
    assert {side for _, side in seen.evaluated} - {8} == {16}  # 8: the model is tried on such an image before it trains


def test_samples_and_labels_are_those_of_full_images(data: Path, tmp_path: Path) -> None:
    growing = config(data, tmp_path)
    plain = config(data, tmp_path, "plain", augment=GROWING.model_copy(update={"grow_from_px": None}))
    run(growing)
    run(plain)
    assert result_of(growing)["ledger"] == result_of(plain)["ledger"]
    losses = [[row["loss"] for key, row in rows(one).items() if key[0] is not None] for one in (growing, plain)]  # type: ignore[index]
    assert losses[0] != losses[1]


def test_resumed_while_images_grow_bit_by_bit(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parted = config(data, tmp_path, "whole"), config(data, tmp_path, "parted")
    run(whole)
    interrupted(parted, monkeypatch, 6)
    assert_same_run(parted, whole)


def test_parts_of_a_batch_shrink_alike(data: Path, tmp_path: Path) -> None:
    whole, parted = config(data, tmp_path, "whole"), config(data, tmp_path, "parted", max_micro_batch=5)
    for one in (whole, parted):
        run(one, torch.float64)
    ends = [rows(one)[12, 4.0, None]["loss"] for one in (whole, parted)]
    assert ends[0] == pytest.approx(ends[1], rel=1e-9)


def test_mfu_counts_the_pixels_that_there_were(data: Path, tmp_path: Path) -> None:
    growing = config(data, tmp_path)
    run(growing)
    found = {row["step"]: row for key, row in rows(growing).items() if key[0] is not None}  # type: ignore[index]
    each = {
        step: row["mfu"] / row["images_per_s"] / (side / 16) ** 2
        for (step, row), side in zip(found.items(), SIDES, strict=True)
    }
    assert list(each.values()) == pytest.approx([each[1]] * 12)
    result = result_of(growing)
    area = Growth(GROWING, 12).area(range(12))
    assert result["mfu"] / result["images_per_s"] == pytest.approx(each[1] * area)


def test_a_backbone_for_one_size_is_refused_before_a_run_is_begun(data: Path, tmp_path: Path) -> None:
    fixed = config(data, tmp_path, model=SMALL)
    with pytest.raises(ConfigError, match="takes no images of 8 px") as caught:
        build_model(fixed, build_specs(fixed, preflight.check(fixed).manifest))
    assert caught.value.got == "augment.grow_from_px = 8"
    assert store_of(fixed).list() == []
