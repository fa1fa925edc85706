"""What the order costs at scale, up to a billion rows, without a byte of an image: time to start, memory, reads.

    python benchmarks/simulate.py [--quick]

Prints for each scale, with the rows of its index in memory:

    first_position_seconds  from nothing to the rows of a local batch at a position drawn anew, and to the block of
                            each of its lanes; `baseline` is the goal of 1 s
    first_position_cpu_seconds  the same in seconds of the processor: what it takes where nothing else runs
    plan_bytes              the process's peak memory less what Python and numpy take
    bytes_per_rank          the most that one worker's row groups can weigh; `baseline` is that of a worker alone
    read_amplification      row groups fetched in an epoch, by all ranks, over those that there are
    goodput                 1 - (restart + interval / 2) / MTBF, where MTBF, the time between failures, is that of
                            one worker over the number of workers; `baseline` is that of a worker alone. Its inputs
                            are options, and are said to stderr
"""

import argparse
import gc
import resource
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import emit, say
from mtl.config import Checkpoint
from mtl.data.footprint import footprint
from mtl.data.keyed import key, uniforms
from mtl.data.order import I64, Order, slots

GOAL_S = 1.0
IMAGE_BYTES = 40_000


@dataclass(frozen=True)
class Scale:
    """A data set of so many rows in row groups of 100, about 4 MB, trained on by so many workers."""

    name: str
    rows: int
    lanes: int
    global_batch: int
    world_size: int
    rows_per_group: int = 100
    block_row_groups: int = 8
    groups_per_shard: int = 40

    def index(self) -> I64:
        """The rows of each row group: the last one of each shard is shorter."""
        shard = np.full(self.groups_per_shard, self.rows_per_group, np.int64)
        shard[-1] -= 7
        return np.tile(shard, -(-self.rows // int(shard.sum())))

    def order(self, rows: I64) -> Order:
        """The order of training."""
        return Order(
            rows,
            fingerprint=self.name,
            split="train",
            seed=0,
            lanes=self.lanes,
            block_row_groups=self.block_row_groups,
            global_batch=self.global_batch,
            keep_tail=False,
        )


SCALES = (  # ascending, so that the peak of memory is that of the scale that was run last
    Scale("imagenet-1k", 1_281_167, lanes=64, global_batch=1024, world_size=8),
    Scale("imagenet-21k", 14_197_122, lanes=256, global_batch=4096, world_size=32),
    Scale("laion-400m", 400_000_000, lanes=1024, global_batch=16_384, world_size=128),
    Scale("one-billion", 1_000_000_000, lanes=1024, global_batch=16_384, world_size=256),
)


def start(scale: Scale, rows: I64, trial: int) -> tuple[float, float]:
    """A worker's start at a position and a rank that `trial` decides: its first batch, and its lanes' blocks.

    Returns:
        Seconds, and seconds of the processor.
    """
    gc.collect()  # an epoch that is done with is part of a circle
    where, who = uniforms(key("trial", scale.name), np.array([trial]), 2)[0].tolist()
    began, cpu_began = time.perf_counter(), time.process_time()
    order = scale.order(rows)
    epoch, batch = divmod(int(where * 90 * order.steps), order.steps)
    rank = int(who * scale.world_size)
    plan = order.epoch(epoch)
    plan.at(slots(order, batch, rank, scale.world_size))
    for lane in range(rank, scale.lanes, scale.world_size):
        index = np.array([batch * order.global_batch // order.lanes])
        plan.lanes[lane].block(int(plan.lanes[lane].block_of(index)[0]))
    return time.perf_counter() - began, time.process_time() - cpu_began


def goodput(restart_s: float, interval_s: float, worker_mtbf_s: float, workers: int) -> float:
    """Share of the time that is useful: a failure costs the restart and, on average, half an interval."""
    return max(1 - (restart_s + interval_s / 2) * workers / worker_mtbf_s, 0.0)


def peak_bytes() -> int:
    """The most memory that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> None:
    """Every scale, smallest first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 starts at each scale instead of 15")
    parser.add_argument("--restart-s", type=float, default=120, help="from a failure to the step after it, seconds")
    parser.add_argument("--interval-s", type=float, default=Checkpoint().every_s, help="between commits, seconds")
    parser.add_argument(
        "--worker-mtbf-h",
        type=float,
        default=50_000,
        help="hours between failures of one worker; 419 in 54 days of 16,384 GPUs are 50,700 (Llama 3, 2024, table 5)",
    )
    arguments = parser.parse_args()
    trials, mtbf_s = 3 if arguments.quick else 15, arguments.worker_mtbf_h * 3600
    began = peak_bytes()
    for scale in SCALES:
        bench = f"simulate/{scale.name}"
        rows = scale.index()
        starts = [start(scale, rows, trial) for trial in range(trials)]
        for metric, taken in zip(("seconds", "cpu_seconds"), zip(*starts, strict=True), strict=True):
            seconds = statistics.median(taken)
            emit(bench, f"first_position_{metric}", seconds, "s", baseline=GOAL_S, ratio=seconds / GOAL_S)
        emit(bench, "plan_bytes", peak_bytes() - began, "B")

        order = scale.order(rows)
        weights = rows * IMAGE_BYTES
        alone, shared = (
            footprint(
                order,
                weights,
                workers,
                size_px=224,
                label_entries=3,
                prefetch_batches=4,
                prefetch_bytes=2**27,
                memory="none",
            ).total
            for workers in (1, scale.world_size)
        )
        emit(bench, "bytes_per_rank", shared, "B", baseline=alone, ratio=shared / alone)
        fetched = sum(lane.high - lane.low for lane in order.epoch(0).lanes)
        emit(bench, "read_amplification", fetched / len(rows), "ratio", baseline=1, ratio=fetched / len(rows))

        alone, shared = (
            goodput(arguments.restart_s, arguments.interval_s, mtbf_s, workers) for workers in (1, scale.world_size)
        )
        emit(bench, "goodput", shared, "ratio", baseline=alone, ratio=shared / alone)
        say(
            f"goodput: {scale.world_size} workers, each failing every {arguments.worker_mtbf_h:,.0f} h: one failure in "
            f"{arguments.worker_mtbf_h / scale.world_size:,.0f} h; restart {arguments.restart_s:g} s, "
            f"commits every {arguments.interval_s:g} s"
        )


if __name__ == "__main__":
    main()
