"""Keyed randomness: golden vectors, because a change would silently alter every run."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl.data.keyed import hashes, key, mix, permutation, uniforms

SEEDS = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [((), 0xB4B2797457A0A6E4), (("groups", 0, 1), 0x2295CE7CBD1CA0FE), (("a", "b"), 0x10D4E09F664D4CF8)],
)
def test_golden_keys(parts: tuple[int | str, ...], expected: int) -> None:
    assert key(*parts) == expected


def test_golden_hashes() -> None:
    # The first two are the published outputs of SplitMix64 for the seeds 0 and 1.
    values = np.array([0, 1, 2**64 - 1], np.uint64)
    assert mix(values).tolist() == [0xE220A8397B1DCDAF, 0x910A2DEC89025CC1, 0xE4D971771B652C20]
    values = np.array([0, 1, 2], np.uint64)
    assert hashes(1, values).tolist() == [0xD300120A5EA35CAC, 0xE220A8397B1DCDAF, 0x45C35442D09F4CD3]


def test_golden_permutations() -> None:
    assert permutation(0, 12).tolist() == [6, 4, 11, 7, 3, 10, 8, 1, 2, 0, 5, 9]
    assert permutation(2**64 - 1, 12).tolist() == [8, 10, 5, 3, 0, 6, 11, 7, 1, 9, 2, 4]


def test_golden_uniforms() -> None:
    assert uniforms(7, np.array([0, 1, 2**40]), 3).tolist() == [
        [0.510004458721349, 0.34665387157796057, 0.7861301279972585],
        [0.1718608996634482, 0.3114560999169361, 0.9461855561318661],
        [0.9935025100263479, 0.8499464911242586, 0.7418035584589813],
    ]


def test_parts_of_a_key_do_not_run_together() -> None:
    made = {key("ab", "c"), key("a", "bc"), key("abc"), key("a", "b", "c"), key("", "abc"), key(1, 23), key(12, 3)}
    assert len(made) == 7


@given(SEEDS, st.integers(0, 300))
def test_permutations_are_permutations(seed: int, n: int) -> None:
    assert sorted(permutation(seed, n).tolist()) == list(range(n))


@pytest.mark.parametrize(("seed", "n"), [(34, 1_000_000), (0, 65_535), (1, 65_536), (2, 65_537), (3, 1), (4, 0)])
def test_a_permutation_is_the_order_of_the_hashes(seed: int, n: int) -> None:
    """Of a million numbers, two have hashes that differ in their low bits only (seed 34, found by trying)."""
    expected = np.argsort(hashes(seed, np.arange(n, dtype=np.uint64)), kind="stable")
    np.testing.assert_array_equal(permutation(seed, n), expected)


@given(SEEDS, SEEDS)
def test_other_seeds_permute_otherwise(seed: int, other: int) -> None:
    assert (permutation(seed, 64).tolist() == permutation(other, 64).tolist()) == (seed == other)


@given(SEEDS, st.lists(st.integers(0, 2**50), min_size=1, max_size=20), st.integers(1, 8))
def test_a_number_depends_on_seed_position_and_column_only(seed: int, positions: list[int], columns: int) -> None:
    all_of_them = uniforms(seed, np.array(positions), 8)
    assert ((all_of_them >= 0) & (all_of_them < 1)).all()
    for row, position in enumerate(positions):
        alone = uniforms(seed, np.array([position]), columns)
        assert alone.tolist() == all_of_them[row : row + 1, :columns].tolist()


def test_numbers_are_spread_evenly_and_unrelated() -> None:
    numbers = uniforms(key("even"), np.arange(20_000), 4)
    assert np.abs(numbers.mean(0) - 0.5).max() < 0.01
    assert np.abs(numbers.var(0) - 1 / 12).max() < 0.002
    neighbours = np.concatenate([numbers[1:], numbers[:-1]], axis=1)
    assert np.abs(np.corrcoef(neighbours.T) - np.eye(8)).max() < 0.04


def test_permutations_have_no_favourite_places() -> None:
    places = np.array([permutation(key("places", i), 8) for i in range(4_000)])
    for number in range(8):
        share = (places == number).mean(0)
        assert np.abs(share - 1 / 8).max() < 0.03
