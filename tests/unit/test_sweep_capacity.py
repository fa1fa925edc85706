import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl.config import Resources
from mtl.errors import ResourceError
from mtl.sweep.capacity import at_once


def cpus(workers: int, each: int) -> Resources:
    return Resources(workers=workers, cpus_per_worker=each)


def gpus(workers: int, each: int = 1) -> Resources:
    return Resources(workers=workers, cpus_per_worker=each, gpu=True)


@pytest.mark.parametrize(
    ("resources", "nodes", "trials"),
    [
        (cpus(2, 1), [{"CPU": 2}], 1),
        (cpus(2, 1), [{"CPU": 5}], 2),
        (cpus(2, 2), [{"CPU": 3}, {"CPU": 3}], 1),  # a place on each, one CPU on each is of no use
        (cpus(3, 1), [{"CPU": 2}, {"CPU": 2}, {"CPU": 2}], 2),  # across nodes
        (cpus(1, 4), [{"CPU": 7}, {"CPU": 3}, {}], 1),
        (gpus(2), [{"CPU": 16, "GPU": 5}], 2),
        (gpus(2), [{"CPU": 4}, {"CPU": 16, "GPU": 3}, {"CPU": 16, "GPU": 3}], 2),  # whole trials of a node
        (gpus(4), [{"CPU": 16, "GPU": 3}, {"CPU": 16, "GPU": 3}], 1),  # too large for a node
        (gpus(1, 8), [{"CPU": 16, "GPU": 4}], 2),  # the CPUs are what is short
    ],
)
def test_trials_at_a_time(resources: Resources, nodes: list[dict[str, float]], trials: int) -> None:
    assert at_once(resources, nodes) == trials


@pytest.mark.parametrize(
    ("resources", "nodes"),
    [
        (cpus(2, 2), [{"CPU": 3}]),
        (cpus(1, 2), [{"CPU": 1}, {"CPU": 1}]),
        (gpus(1), [{"CPU": 64}]),
        (gpus(8), [{"CPU": 64, "GPU": 4}]),
        (cpus(1, 1), []),
    ],
)
def test_more_than_there_is_for_one_trial_is_an_error(resources: Resources, nodes: list[dict[str, float]]) -> None:
    with pytest.raises(ResourceError, match="too small for one trial"):
        at_once(resources, nodes)


@given(
    st.integers(1, 5),
    st.integers(1, 4),
    st.booleans(),
    st.lists(st.fixed_dictionaries({"CPU": st.integers(0, 12), "GPU": st.integers(0, 4)}), min_size=1, max_size=5),
    st.randoms(use_true_random=False),
)
def test_that_many_trials_always_find_room_wherever_their_workers_land(workers, each, gpu, nodes, random) -> None:
    resources = Resources(workers=workers, cpus_per_worker=each, gpu=gpu)
    try:
        trials = at_once(resources, nodes)
    except ResourceError:
        trials = 0
    free = [dict(node) for node in nodes]
    for _ in range(trials * workers):
        fits = [node for node in free if node["CPU"] >= each and node["GPU"] >= gpu]
        assert fits
        node = random.choice(fits)
        node["CPU"] -= each
        node["GPU"] -= gpu
