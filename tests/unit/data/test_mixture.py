"""Mixtures: exact proportions in every global batch, every data set's epochs whole, a step is enough to resume."""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mtl.config import Augment
from mtl.data.batch import OK
from mtl.data.joined import Joined
from mtl.data.loader import Loader, Target
from mtl.data.manifest import Index, Manifest
from mtl.data.mixture import Mixture, Source, apportion
from mtl.data.order import slots
from mtl.data.reader import Reader
from mtl.data.transforms import EvalView
from tests.helpers.datasets import tiny
from tests.helpers.memory_store import MemoryStore
from tests.helpers.restore import assert_restores

Row = tuple[int, int]


@dataclass(frozen=True)
class Case:
    """Arguments of a mixture."""

    rows: tuple[tuple[int, ...], ...] = ((3, 1, 4, 2, 5), (2, 2), (6, 1, 6))
    weights: tuple[float, ...] = (2, 1, 1)
    seed: int = 7
    lanes: int = 4
    block_row_groups: int | None = 2
    global_batch: int = 8
    steps: int = 3

    def mixture(self) -> Mixture:
        return Mixture(
            [
                Source(np.array(rows, np.int64), f"f{number}", weight)
                for number, (rows, weight) in enumerate(zip(self.rows, self.weights, strict=True))
            ],
            split="train",
            seed=self.seed,
            lanes=self.lanes,
            block_row_groups=self.block_row_groups,
            global_batch=self.global_batch,
            steps=self.steps,
        )

    def source_of(self, row: Row) -> int:
        first = np.cumsum([0, *map(len, self.rows)])
        return int(np.searchsorted(first, row[0], side="right")) - 1


@st.composite
def cases(draw: st.DrawFn) -> Case:
    count = draw(st.integers(1, 3))
    lanes, per_lane = draw(st.integers(count, 7)), draw(st.integers(1, 3))
    rows = st.lists(st.integers(0, 9), min_size=1, max_size=10).map(tuple)
    case = Case(
        rows=tuple(draw(rows) for _ in range(count)),
        weights=tuple(draw(st.floats(0.01, 100)) for _ in range(count)),
        seed=draw(st.integers(0, 2**63)),
        lanes=lanes,
        block_row_groups=draw(st.none() | st.integers(1, 4)),
        global_batch=lanes * per_lane,
        steps=draw(st.integers(1, 12)),
    )
    shares = apportion(case.weights, lanes)
    assume(all(sum(rows) >= share * per_lane for rows, share in zip(case.rows, shares, strict=True)))
    return case


def batch(mixture: Mixture, step: int, world_size: int = 1) -> dict[int, Row]:
    """(Row group, row) by position in the global batch of `step`, found as the loader finds it."""
    epoch, number = divmod(step, mixture.steps)
    found: dict[int, Row] = {}
    for rank in range(world_size):
        held = slots(mixture, number, rank, world_size)
        for position in held[held >= 0].tolist():
            index, lane = divmod(position, mixture.lanes)
            assert lane % world_size == rank
            plan = mixture.epoch(epoch).lanes[lane]
            block = plan.block(int(plan.block_of(np.array([index]))[0]))
            at = index - block.start
            found[position] = int(block.rows.group[at]), int(block.rows.row[at])
    return found


@settings(max_examples=40)
@given(cases(), st.integers(0, 40))
def test_every_global_batch_has_exact_proportions(case: Case, step: int) -> None:
    mixture = case.mixture()
    counts = Counter(map(case.source_of, batch(mixture, step).values()))
    shares = apportion(case.weights, case.lanes)
    assert [counts[number] for number in range(len(shares))] == [n * case.global_batch // case.lanes for n in shares]


@settings(max_examples=40)
@given(cases(), st.integers(0, 3))
def test_every_epoch_of_every_data_set_is_its_own_order(case: Case, epoch: int) -> None:
    """Its steps, counted by its own clock, hold the kept prefix of that epoch: every row at most once."""
    mixture = case.mixture()
    for number, part in enumerate(mixture.parts):
        assume(part.steps <= 12)
        seen = [
            row
            for step in range(epoch * part.steps, (epoch + 1) * part.steps)
            for row in batch(mixture, step).values()
            if case.source_of(row) == number
        ]
        kept = part.epoch(epoch).at(np.arange(part.samples))
        assert Counter(seen) == Counter(
            zip((kept.group + mixture.first_group[number]).tolist(), kept.row.tolist(), strict=True)
        )
        assert len({*seen}) == part.samples > part.n - part.global_batch


@settings(max_examples=12)
@given(cases(), st.data())
def test_restored_at_every_step_it_delivers_the_rest_on_any_number_of_workers(case: Case, data: st.DataObject) -> None:
    def deliver(steps: range, world_size: int) -> dict[int, object]:
        mixture = case.mixture()
        return {step: batch(mixture, step, world_size) for step in steps}

    assert_restores(deliver, 2 * min(case.steps, 5) + 1, {1, data.draw(st.integers(1, case.lanes))})


@settings(max_examples=40)
@given(cases(), st.integers(1, 12), st.integers(0, 40))
def test_what_is_called_an_epoch_does_not_change_the_samples(case: Case, steps: int, step: int) -> None:
    other = replace(case, steps=steps).mixture()
    assert [*batch(case.mixture(), step).values()] == [*batch(other, step).values()]


@settings(max_examples=40)
@given(cases(), st.integers(0, 3))
def test_blocks_tile_their_lane(case: Case, epoch: int) -> None:
    for lane in case.mixture().epoch(epoch).lanes:
        number, stop = -1, 0
        while number + 1 < lane.blocks:
            block = lane.block(number + 1)
            assert block.start == stop < block.stop
            assert block.number == block.stop - 1
            assert {*block.groups.tolist()} == {*block.rows.group.tolist()}
            again = lane.block(block.start + len(block.rows) // 2)
            assert (again.number, again.start) == (block.number, block.start)
            number, stop = block.number, block.stop
        assert stop == len(lane) == lane.blocks


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=9), st.integers(0, 90))
def test_lanes_are_apportioned_by_weight(weights: list[float], more: int) -> None:
    lanes = len(weights) + more
    shares = apportion(weights, lanes)
    assert sum(shares) == lanes
    assert min(shares) >= 1
    due = np.array(weights) / sum(weights) * lanes
    assert (np.array(shares) <= np.ceil(due + 1e-9).clip(min=1)).all()
    if due.min() >= 1:
        assert (np.array(shares) >= np.floor(due - 1e-9)).all()
    heavier = sorted(zip(weights, shares, strict=True))
    assert [share for _, share in heavier] == sorted(shares)


def test_golden_shares() -> None:
    assert apportion([6, 3, 1], 10) == [6, 3, 1]
    assert apportion([1, 1, 1], 16) == [6, 5, 5]
    assert apportion([0.1] * 3 + [0.7], 10) == [1, 1, 1, 7]
    assert apportion([1000, 1, 1], 8) == [6, 1, 1]
    assert apportion([47, 16, 15.8, 12, 6.1, 3.1], 10) == [4, 2, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("weights", "lanes"), [([], 4), ([1, 1, 1], 2), ([1, 0], 4), ([1, -1], 4), ([1, np.inf], 4), ([1, np.nan], 4)]
)
def test_weights_that_can_not_be_apportioned(weights: list[float], lanes: int) -> None:
    with pytest.raises(ValueError, match="weights"):
        apportion(weights, lanes)


def test_a_data_set_of_less_than_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match="1 rows are fewer than the 2 that each step takes"):
        Case(rows=((9,), (1,), (9,))).mixture()
    with pytest.raises(ValueError, match="multiple of lanes"):
        Case(global_batch=6).mixture()
    with pytest.raises(ValueError, match="steps 0"):
        Case(steps=0).mixture()


def test_two_data_sets_that_are_alike_are_not_in_step() -> None:
    mixture = Case(rows=((5,) * 8, (5,) * 8), weights=(1, 1), steps=5).mixture()
    first, second = (part.epoch(0).groups.tolist() for part in mixture.parts)
    assert first != second


@pytest.mark.parametrize(
    "change",
    [{"seed": 8}, {"weights": (1, 1, 2)}, {"block_row_groups": 3}, {"global_batch": 12}, {"steps": 4}, {"lanes": 8}],
)
def test_order_id_tells_mixtures_apart(change: dict[str, object]) -> None:
    assert replace(Case(), **change).mixture().order_id != Case().mixture().order_id  # type: ignore[arg-type]
    assert Case().mixture().order_id == Case().mixture().order_id


def test_a_loader_reads_a_mixture_as_it_reads_an_order() -> None:
    readers: list[Reader] = []
    sources: list[Source] = []
    for number, n in enumerate((40, 25)):
        tiny(store := MemoryStore(), rows={"train": n}, seed=number, missing=0)
        index = Index.load(store, "train")
        readers.append(Reader(store, index, ("amount",)))
        sources.append(Source(index.rows, Manifest.load(store).fingerprint, 3 - number))

    def mixture() -> Mixture:
        return Mixture(sources, split="train", seed=1, lanes=5, block_row_groups=2, global_batch=10, steps=4)

    both, view = Joined(readers, {}), EvalView(Augment(size_px=16, crop="none", eval_resize_px=16))
    target = Target("amount", "amount", integer=False)

    def deliver(steps: range, world_size: int) -> dict[int, object]:
        found: dict[int, list[tuple[float, bytes]]] = {step: [] for step in steps}
        ledgers = dict.fromkeys(steps, 0)
        for rank in range(world_size):
            for made in Loader(both, mixture(), view, (target,), steps, rank=rank, world_size=world_size):
                for slot in np.flatnonzero(made.status == OK):
                    found[made.step].append((float(made.labels["amount"][slot]), made.images[slot].tobytes()))
                ledgers[made.step] = (ledgers[made.step] + made.ledger) % 2**64
        return {step: (sorted(found[step]), ledgers[step]) for step in steps}

    assert_restores(deliver, 9, [1, 2, 5])
    drawn = deliver(range(9), 1)
    expected = {
        step: sorted(float(both.read(group).labels["amount"][row]) for group, row in batch(mixture(), step).values())
        for step in range(9)
    }
    assert {step: [amount for amount, _ in found] for step, (found, _) in drawn.items()} == expected  # type: ignore[misc]
