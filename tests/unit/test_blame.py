"""Seconds by cause, and the sentence about them."""

import re
from dataclasses import astuple
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl.blame import Machine, Sums, ceilings, machine, verdict
from mtl.config import Loader, Resources
from tests.helpers.jobs import tiny_config

S3 = Machine(threads=2, io_threads=8, storage="S3")
SECONDS = st.floats(0, 1e4)
CAUSES = ("storage", "decode", "copy", "straggler", "commit")
ANY = st.builds(Sums, *([SECONDS] * 6), st.integers(0, 10**9), SECONDS, SECONDS, st.integers(0, 10**12))


@given(ANY)
def test_shares_are_a_partition(sums: Sums) -> None:
    shares = sums.shares()
    assert {*shares} == {*CAUSES, "compute"}
    assert sum(shares.values()) == pytest.approx(1)
    assert all(-1e-9 <= share <= 1 for share in shares.values())


@given(ANY, ANY)
def test_sums_add_up_and_average_over_ranks(a: Sums, b: Sums) -> None:
    total = Sums(*astuple(a))
    total.add(b)
    assert total.values() == pytest.approx([x + y for x, y in zip(a.values(), b.values(), strict=True)])
    mean = Sums.mean(total.values(), 2)
    assert mean.values() == pytest.approx([value / 2 for value in total.values()])


@given(ANY)
def test_the_verdict_names_the_largest_wait_or_computing(sums: Sums) -> None:
    shares = sums.shares()
    bound = verdict(sums, S3).partition("-bound: ")[0]
    if shares["compute"] > 0.9 + 1e-9:
        assert bound == "compute"
    elif shares["compute"] < 0.9 - 1e-9:
        assert shares[bound] == max(shares[cause] for cause in CAUSES)


@pytest.mark.parametrize(
    ("sums", "sentence"),
    [
        (
            {"storage_s": 6.1, "decode_s": 1, "samples": 1000, "fetching_s": 20.0, "fetched_bytes": 10**8, "cpu_s": 4},
            "storage-bound: 61% of the step waits for S3 (at most 400 images/s a worker, 8 reads at a time); more "
            "loader.io_threads or loader.prefetch_mb, or keeping the data (loader.memory), would help",
        ),
        ({"storage_s": 6.1}, "storage-bound: 61% of the step waits for S3; more loader"),
        (
            {"decode_s": 4.5, "samples": 1000, "cpu_s": 2.5},
            "decode-bound: 45% of the step waits for decoding (at most 800 images/s a worker, 2 threads); more CPU",
        ),
        ({"copy_s": 3}, "copy-bound: 30% of the step copies to the device"),
        ({"straggler_s": 3}, "straggler-bound: 30% of the step waits for the data of a slower worker"),
        ({"commit_s": 3}, "commit-bound: 30% of the step commits checkpoints; a larger checkpoint.every_s"),
        ({"storage_s": 0.2, "decode_s": 0.5}, "compute-bound: 93% of the step computes; data"),
        ({}, "compute-bound: 100% of the step computes"),
    ],
)
def test_sentences(sums: dict[str, Any], sentence: str) -> None:
    said = verdict(Sums(total_s=10, **sums), S3)
    assert said.startswith(sentence)
    assert not re.search(r"[{}]", said)


def test_ceilings_are_only_of_what_was_measured() -> None:
    assert ceilings(Sums(total_s=1, samples=10), S3) == {}
    sums = Sums(total_s=1, samples=100, cpu_s=0.5, fetching_s=2, fetched_bytes=1)
    assert ceilings(sums, S3) == {"decode": 400, "storage": 400}


def test_the_machine_of_a_configuration() -> None:
    config = tiny_config("s3://bucket/data", "runs", loader=Loader(threads=3, io_threads=5))
    assert machine(config) == Machine(3, 5, "S3")
    config = tiny_config("data/x", "runs", loader=Loader(), resources=Resources(workers=1, cpus_per_worker=4))
    assert machine(config) == Machine(4, 8, "local files")
    assert machine(tiny_config("gs://bucket", "runs")).storage == "gs"
