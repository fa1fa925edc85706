"""What does a row group cost from S3, and what is left of the rate when the server is rough?

Reads a data set of JPEGs of noise (94 KB each) through Reader, without decoding any: from the local folder, from an
HTTP server on loopback as S3Store reads, from there through boto3's get_object, and through the fault proxy, clean and
rough (2 % of requests fail, 1 % start 2 s late), with and without hedging. Servers are processes of their own. Every
run checks that each row came as often as it should. Alternated; medians, and the spread from least to most.

    python benchmarks/reads.py [--quick]
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import boto3
import numpy as np
import simplejpeg
from botocore.config import Config

from benchmarks.common import emit, say
from mtl.data.manifest import Index, Label
from mtl.data.plan import Layout
from mtl.data.reader import Reader
from mtl.data.source import Example
from mtl.data.writer import write
from mtl.store import Store, open_store
from mtl.store.patience import Patience
from mtl.store.s3 import S3Store

IDENTITY = {
    "AWS_ACCESS_KEY_ID": "benchmark",
    "AWS_SECRET_ACCESS_KEY": "benchmark",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class Boto3Store:
    """The ranged reads of a Store by boto3's get_object: what S3Store would be without mtl/store/fetch.py."""

    def __init__(self, store: S3Store) -> None:
        self._store = store
        config = Config(max_pool_connections=64, response_checksum_validation="when_required")
        self._client: Any = boto3.client("s3", config=config)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def get_range(self, key: str, offset: int, length: int, *, version: str | None = None) -> bytes:
        return self.get_range_versioned(key, offset, length)[0]

    def get_range_versioned(self, key: str, offset: int, length: int) -> tuple[bytes, str]:
        span = f"bytes={offset}-{offset + length - 1}"
        answer = self._client.get_object(Bucket=self._store.bucket, Key=f"{self._store.prefix}/{key}", Range=span)
        return answer["Body"].read(), answer["ETag"]


@dataclass
class Measured:
    """images/s and CPU milliseconds of this process per image."""

    images_s: float
    cpu_ms: float


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two rounds of few epochs")
    parser.add_argument("--threads", type=int, default=8)
    args = parser.parse_args()
    rounds, epochs = (2, 3) if args.quick else (5, 12)
    os.environ.update(IDENTITY)
    with tempfile.TemporaryDirectory() as folder:
        local = open_store(f"{folder}/bucket/data")
        make(local, 1_200)
        index = Index.load(local, "train")
        with (
            served("tests.helpers.object_server", folder) as url,
            served("tests.helpers.fault_proxy", url) as clean,
            served("tests.helpers.fault_proxy", url, "--rough") as rough,
        ):
            unhedged = replace(Patience(), hedge_share=0)
            stores: dict[str, Callable[[], Store]] = {
                "local": lambda: local,
                "http": lambda: s3(url),
                "boto3": lambda: Boto3Store(s3(url)),
                "clean": lambda: s3(clean),
                "rough": lambda: s3(rough),
                "rough_unhedged": lambda: s3(rough, unhedged),
            }
            runs: dict[str, list[Measured]] = {name: [] for name in stores}
            for _ in range(rounds):
                for name, make_store in stores.items():
                    runs[name].append(measure(make_store(), index, epochs, args.threads))
    for name in ("http", "boto3"):
        tell(f"{name}_cpu", runs[name], runs["local"], lambda run: run.cpu_ms, "CPU-ms/image")
    for name in ("rough", "rough_unhedged"):
        tell(f"{name}_fraction", runs[name], runs["clean"], lambda run: run.images_s, "images/s")


def make(store: Store, rows: int) -> None:
    """Write a data set of `rows` JPEGs in row groups of 3 MB."""
    draw = np.random.default_rng(0)
    images = [simplejpeg.encode_jpeg(draw.integers(0, 256, (220, 220, 3), np.uint8), quality=90) for _ in range(32)]
    examples = [
        Example(f"train/{number}", "train", {"odd": number % 2}, lambda image=images[number % 32]: image)
        for number in range(rows)
    ]
    layout = Layout(seed=0, shard_bytes=32 << 20, row_group_bytes=3 << 20)
    write(store, "reads", examples, {"odd": Label(kind="binary")}, layout, workers=1)


@contextmanager
def served(*module: str) -> Iterator[str]:
    """The address that a module of ours, run as a process, prints; it ends with the block."""
    command = [sys.executable, "-m", *module]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.stdin.close()


def s3(url: str, patience: Patience | None = None) -> S3Store:
    """A store on the server at `url`, connected."""
    os.environ["AWS_ENDPOINT_URL"] = url
    store = S3Store.at("s3://bucket/data", patience or Patience())
    store.get_range("manifest.json", 0, 1)
    return store


def measure(store: Store, index: Index, epochs: int, threads: int) -> Measured:
    """Read every row group `epochs` times, after some that do not count."""
    reader = Reader(store, index, ("odd",))
    numbers = [*range(len(index.rows))]
    with ThreadPoolExecutor(threads) as pool:
        once = np.concatenate(list(pool.map(lambda number: reader.read(number).ids, numbers)))
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        ids = list(pool.map(lambda number: reader.read(number).ids, numbers * epochs))
        wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    np.testing.assert_array_equal(np.concatenate(ids), np.tile(once, epochs))
    rows = int(index.rows.sum()) * epochs
    assert len(np.unique(once)) * epochs == rows
    return Measured(rows / wall_s, 1e3 * cpu_s / rows)


def tell(
    metric: str, runs: list[Measured], baseline: list[Measured], value: Callable[[Measured], float], unit: str
) -> None:
    """Print one result: medians of both, the median ratio of the rounds; to stderr its spread."""
    ratios = [value(run) / value(base) for run, base in zip(runs, baseline, strict=True)]
    medians = [statistics.median(value(run) for run in some) for some in (runs, baseline)]
    emit("reads", metric, medians[0], unit, baseline=medians[1], ratio=statistics.median(ratios))
    say(f"{metric}: ratio {min(ratios):.3f} to {max(ratios):.3f} over {len(ratios)} rounds")


if __name__ == "__main__":
    main()
