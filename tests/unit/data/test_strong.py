"""Random erasing, mixup and CutMix: what they draw, what they do, and that no mean is off."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl.config import Augment
from mtl.data.batch import Batch
from mtl.data.strong import Strong, beta, outside
from mtl.inputs import Inputs
from mtl.loop import train_step
from tests.helpers.batches import CPU, batch, counts, gradients, hide, rows, specs, trainee
from tests.helpers.engine import TASKS

EXACT: dict[str, Any] = {"rtol": 1e-11, "atol": 1e-12}
LANES = 4
SWITCHES: list[dict[str, float]] = [
    {"mixup": 0.3},
    {"cutmix": 1.0},
    {"mixup": 0.8, "cutmix": 1.0},
    {"mixup": 1.0, "cutmix": 0.5, "erase": 0.5},
    {"erase": 1.0},
]


def strong(**switches: float) -> Strong:
    return Strong(Augment(size_px=16, eval_resize_px=16, **switches), 0, LANES)  # type: ignore[arg-type]


def by_lane(made: Batch, *lanes: int) -> Batch:
    """The samples of some lanes, in another order than in the batch."""
    return rows(made, [i for lane in lanes for i in np.flatnonzero(made.positions % LANES == lane).tolist()])


def test_off_it_is_nothing() -> None:
    assert strong().boxes(0, np.arange(8)) is None
    assert strong().blend(0, np.arange(8)) is None


def test_boxes_are_keyed_by_position() -> None:
    positions = np.arange(1000)
    whole = strong(erase=0.3).boxes(2, positions)
    assert whole is not None
    picked = strong(erase=0.3).boxes(2, positions[[17, 3]])
    assert picked is not None
    assert picked.tolist() == whole[[17, 3]].tolist()
    other = strong(erase=0.3).boxes(3, positions)
    assert other is not None
    assert other.tolist() != whole.tolist()
    sides = whole[:, 2:] - whole[:, :2]
    assert (whole[:, :2] >= 0).all()
    assert (whole[:, 2:] <= 16).all()
    drawn = sides.prod(1) > 0
    assert 0.25 < drawn.mean() < 0.35
    share = sides[drawn].prod(1) / 16**2
    assert share.max() <= 0.4  # a third, and rounding
    assert 0.13 < share.mean() < 0.22


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.5, 1.0])
def test_shares_are_beta(alpha: float) -> None:
    drawn = beta(np.random.default_rng(0).random((40_000, 32)), alpha)
    assert (drawn >= 0).all()
    assert (drawn <= 1).all()
    assert drawn.mean() == pytest.approx(0.5, abs=0.01)
    assert drawn.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)


@settings(max_examples=25)
@given(
    st.sampled_from(SWITCHES[:4]),
    st.lists(st.integers(0, 400), min_size=1, max_size=40, unique=True),
    st.integers(0, 10**6),
)
def test_samples_are_permuted_within_their_lane_at_one_share(
    switches: dict[str, float], at: list[int], step: int
) -> None:
    positions = np.array(at)
    found = strong(**switches).blend(step, positions)
    assert found is not None
    for lane in range(LANES):
        own = np.flatnonzero(positions % LANES == lane)
        assert sorted(found.partner[own].tolist()) == own.tolist()
        assert len(np.unique(found.share[own])) <= 1
        if len(own) > 1:
            assert (found.partner[own] != own).all()
        if len(own):
            alone = strong(**switches).blend(step, positions[own])
            assert alone is not None
            assert positions[own][alone.partner].tolist() == positions[found.partner[own]].tolist()
            assert alone.share.tolist() == found.share[own].tolist()
            assert alone.box.tolist() == found.box[own].tolist()
    cut = (found.box[:, 2] - found.box[:, 0]) * (found.box[:, 3] - found.box[:, 1]) / 16**2
    assert (found.share[cut > 0] == 1 - cut[cut > 0]).all()
    assert (found.box >= 0).all()
    assert (found.box <= 16).all()


def test_both_switches_take_turns() -> None:
    made = strong(mixup=1.0, cutmix=1.0)
    blends = [made.blend(step, np.arange(LANES)) for step in range(200)]
    cuts = np.mean([blend.box[:, 2] > blend.box[:, 0] for blend in blends if blend is not None])
    assert 0.42 < cuts < 0.55  # a few squares are of no pixel


@pytest.mark.parametrize("switches", SWITCHES)
def test_pixels_and_losses_are_those_of_a_reference(switches: dict[str, float]) -> None:
    one, augmentation = batch(16), strong(**switches)
    hide(one, "kind", [0, 3, 4, 5])
    made = trainee(strong=augmentation)
    inputs = Inputs(one, made.standardise, augmentation, CPU)
    got = inputs.images(slice(4, 13))
    plain = made.standardise(torch.from_numpy(one.images), torch.from_numpy(one.colour))
    boxes, blend = augmentation.boxes(one.epoch, one.positions), augmentation.blend(one.step, one.positions)
    for i in range(16):
        if boxes is not None:
            top, left, bottom, right = boxes[i]
            plain[i, :, top:bottom, left:right] = 0
    expected, shares = plain.clone(), np.ones(16)
    if blend is not None:
        shares = blend.share
        for i, j in enumerate(blend.partner):
            top, left, bottom, right = blend.box[i]
            if bottom > top:
                expected[i, :, top:bottom, left:right] = plain[j, :, top:bottom, left:right]
            else:
                expected[i] = shares[i] * plain[i] + (1 - shares[i]) * plain[j]
    torch.testing.assert_close(got, expected[4:13], **EXACT)

    outputs = made.model(expected)
    part = slice(4, 13)
    sums = inputs.losses(specs(), {name: output[part] for name, output in outputs.items()}, part)
    partner = np.arange(16) if blend is None else blend.partner
    for spec, total in zip(specs(), sums.tolist(), strict=True):
        labels = torch.from_numpy(one.labels[spec.name])
        own = sum(
            share * spec.loss(outputs[spec.name][i : i + 1], labels[k : k + 1]).item()
            for i in range(4, 13)
            for k, share in ((i, shares[i]), (partner[i], 1 - shares[i]))
        )
        assert total == pytest.approx(own, rel=1e-9)


@pytest.mark.parametrize("switches", SWITCHES)
def test_each_label_counts_as_much_as_unmixed(switches: dict[str, float]) -> None:
    """With a loss of one for every label the sum is the count of labels: means stay exact."""
    one = batch(16)
    hide(one, "kind", [0, 3, 4, 5])
    inputs = Inputs(one, trainee().standardise, strong(**switches), CPU)
    tasks = specs()
    for spec in tasks:
        spec.each = lambda output, label: torch.ones(len(output) + 0 * len(label), dtype=torch.float64)
    outputs = {name: torch.zeros(16, 3, dtype=torch.float64) for name in TASKS}
    torch.testing.assert_close(inputs.losses(tasks, outputs, slice(0, 16)), counts(one), **EXACT)


@pytest.mark.parametrize("switches", SWITCHES)
def test_neither_micro_batches_nor_ranks_change_a_step(switches: dict[str, float]) -> None:
    one = batch(16, step=3)
    hide(one, "angle", [1, 2, 9])
    whole, parts = (trainee(strong=strong(**switches), micro_batch=m) for m in (16, 5))
    train_step(whole, one, counts(one), CPU)
    train_step(parts, one, counts(one), CPU)
    halves: list[dict[str, torch.Tensor]] = []
    for lanes in ((0, 2), (3, 1)):
        half = trainee(strong=strong(**switches), world_size=2)
        train_step(half, by_lane(one, *lanes), counts(one), CPU)
        halves.append(gradients(half))
    for name, gradient in gradients(whole).items():
        torch.testing.assert_close(gradients(parts)[name], gradient, **EXACT)
        torch.testing.assert_close((halves[0][name] + halves[1][name]) / 2, gradient, **EXACT)


def test_outside() -> None:
    mask = outside(np.array([[1, 2, 3, 4], [0, 0, 0, 0]]), 4, torch.zeros(1))
    assert mask[0, 0].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]]
    assert mask[1].all()
