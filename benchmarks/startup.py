"""What Ray costs before and around training: from a command to its first step, and each trial of a sweep.

A head of its own with a dashboard and a token runs on this machine, as in the tests. Seconds, medians of the rounds:

    first_step_s      from `jobs/submit.py -- train` to the line of the first training step
    trial_overhead_s  a trial of a sweep, from started to finished, less the same run by `jobs/train.py`, from starting
                      its workers to its result; both on the running head, one at a time

    python benchmarks/startup.py [--rounds N] [--quick]
"""

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.common import emit, say
from tests.helpers.datasets import tiny
from tests.helpers.head import RealHead, real_head
from tests.helpers.jobs import tiny_config, write_config

Line = tuple[float, str]


def main() -> None:
    """Start a head, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round")
    options = parser.parse_args()
    rounds = 1 if options.quick else options.rounds
    with tempfile.TemporaryDirectory() as scratch, real_head() as head:
        folder = Path(scratch)
        tiny(folder / "data")
        config = tiny_config(folder / "data", folder / "runs", log_every_s=0.5)
        path = write_config(ROOT / "startup-benchmark.yaml", config)  # uploaded with the checkout
        try:
            first = [first_step_s(head, path, number) for number in range(rounds)]
            pairs = [(bare_s(head, path, number), trials_s(head, path, number)) for number in range(rounds)]
        finally:
            path.unlink()
    bare, trial = statistics.median(b for b, _ in pairs), statistics.median(t for _, t in pairs)
    emit("startup", "first_step_s", statistics.median(first), "s", baseline=90, ratio=statistics.median(first) / 90)
    emit("startup", "trial_overhead_s", trial - bare, "s", baseline=bare, ratio=trial / bare)


def first_step_s(head: RealHead, config: Path, number: int) -> float:
    """From the command to the first step of a submitted run of two workers, which is then stopped."""
    name = f"first-{number}"
    words = ["--", "train", "--config", config.name, "--name", name, "--epochs", "5000"]
    lines = timed(head, ["jobs/submit.py", *words], until=r"step \d+/\d+")
    stop = [sys.executable, "jobs/submit.py", "stop", name]
    subprocess.run(stop, cwd=ROOT, env=environment(head), check=True, stdout=subprocess.DEVNULL)
    say(f"first step after {lines[-1][0]:.1f} s")
    return lines[-1][0]


def bare_s(head: RealHead, config: Path, number: int) -> float:
    """A run by itself: from starting its workers to its result."""
    lines = timed(head, ["jobs/train.py", "--config", str(config), "--name", f"bare-{number}"], until="finished: ")
    seconds = lines[-1][0] - at(lines, "starting 2 workers")
    say(f"bare run   {seconds:.1f} s")
    return seconds


def trials_s(head: RealHead, config: Path, number: int) -> float:
    """The median trial of a sweep of eight such runs: four of a single task, one uniform, three sampled."""
    words = ["--config", str(config), "--name", f"sweep-{number}", "--sweep.trials", "3", "--sweep.concurrent", "1"]
    lines = timed(head, ["jobs/tune.py", *words], until="train it ")
    names = [found[1] for _, line in lines if (found := re.search(r"(\S+) +started  ", line))]
    took = [at(lines, rf"{name} +finished") - at(lines, rf"{name} +started") for name in names]
    say("trials     " + "  ".join(f"{name} {seconds:.1f} s" for name, seconds in zip(names, took, strict=True)))
    return statistics.median(took)


def timed(head: RealHead, words: list[str], until: str) -> list[Line]:
    """The lines of a job of jobs/ up to the one that matches, each with the seconds since it was started."""
    began = time.perf_counter()
    lines: list[Line] = []
    with subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, env=environment(head), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append((time.perf_counter() - began, line))
            if re.search(until, line):
                break
        else:
            raise SystemExit(f"{' '.join(words)} never said '{until}':\n{''.join(line for _, line in lines)}")
        if "submit.py" in words[0]:
            process.terminate()
    return lines


def at(lines: list[Line], pattern: str) -> float:
    """When a line first matched, in seconds."""
    return next(seconds for seconds, line in lines if re.search(pattern, line))


def environment(head: RealHead) -> dict[str, str]:
    """A user's of this machine, whose Ray is the head."""
    return {**head.environment, "RAY_API_SERVER_ADDRESS": head.address, "RAY_ADDRESS": head.gcs}


if __name__ == "__main__":
    main()
