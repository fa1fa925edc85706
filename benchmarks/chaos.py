"""A real recipe under a schedule of faults: is the result that of an undisturbed run, and what did the faults cost?

The recipe `shapes` trains with two workers on a head and a node of Ray on this machine, its run on S3 behind a
proxy: the server of AWS_ENDPOINT_URL, else a simulated one. Every so often something happens to it, in turn:

    kill   SIGKILL to a worker
    stop   SIGTERM to the driver, and the same command again
    cut    nobody answers for storage, for 20 s; no restart, as commits wait
    drain  the node of a worker gets a notice of 15 s and goes; another one came before

The last fault is a stop, after which the epoch is trained to its end. Printed are

    goodput             share of the time, from the first step to the end, in steps whose result counted
    goodput_over_model  of 1 - (restart + interval / 2) / MTBF, with the measured median of restarts, the interval of
                        commits (`checkpoint.every_s`), and MTBF = S; goal 0.9
    restart_s           median silence around a restart, from the last progress before it to the first after it
    restart_ours_s      the part of it from the first line of our worker's code to that progress
    ledger_identical    1: the samples were, all of them and once each epoch, those that one process reads undisturbed
    faults              how many were survived

    python benchmarks/chaos.py [--minutes M] [--every S] [--interval S] [--quick]
"""

import argparse
import itertools
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.common import emit, say
from tests.helpers.fault_proxy import FaultProxy, Rule
from tests.helpers.head import RealHead, real_head

CUT_S, NOTICE_S = 20.0, 15.0
PROGRESS = re.compile(r"step ([\d,]+)/")
BUCKET = "mtl-chaos"


def main() -> None:
    """Start servers and a cluster, train under fire, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30, help="for how long faults happen")
    parser.add_argument("--every", type=float, default=180, help="seconds between them")
    parser.add_argument("--interval", type=float, default=15, help="seconds between commits")
    parser.add_argument("--quick", action="store_true", help="one kill and one stop; three minutes")
    options = parser.parse_args()
    minutes, every = (1.0, 30.0) if options.quick else (options.minutes, options.every)
    say("starting a head and a node of Ray")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mtl-chaos-")))
        proxy = stack.enter_context(storage())
        aws = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        head = stack.enter_context(real_head(cpus=1, variables=aws))
        os.environ.update(head.environment)
        chaos = Chaos(head, proxy, folder, options.interval)
        stack.callback(chaos.close)
        chaos.train(minutes * 60, every, ["kill", "stop"] if options.quick else ["kill", "stop", "cut", "drain"])
        result, begun = chaos.result(), chaos.attempts_begun()
        expected = undisturbed_ledger(chaos.config(), result["steps"])
    restart_s = statistics.median(one.silence_s for one in chaos.restarts)
    ours_s = statistics.median(one.since_s(begun) for one in chaos.restarts)
    model = 1 - (restart_s + options.interval / 2) / every
    goodput = result["useful_s"] / (chaos.ended_s - chaos.began_s)
    say(f"{dict(chaos.faults)}; restarts: {Counter(one['cause'] for one in result['restarts'])}")
    say(f"silences, s: {' '.join(f'{one.silence_s:.0f} ({one.since_s(begun):.1f} ours)' for one in chaos.restarts)}")
    emit("chaos", "goodput", goodput, "share", baseline=model, ratio=goodput / model)
    emit("chaos", "goodput_over_model", goodput / model, "ratio", baseline=0.9)
    emit("chaos", "restart_s", restart_s, "s", baseline=35, ratio=restart_s / 35)
    emit("chaos", "restart_ours_s", ours_s, "s", baseline=5, ratio=ours_s / 5)
    emit("chaos", "ledger_identical", float(result["ledger"] == expected), "bool", baseline=1)
    emit("chaos", "faults", chaos.faults.total(), "count")
    if result["ledger"] != expected:
        raise SystemExit(f"the ledger is {result['ledger']}, that of an undisturbed run {expected}")


@contextmanager
def storage() -> Iterator[FaultProxy]:
    """A proxy before an S3 server that has the bucket; this process's environment leads to it."""
    import boto3

    from tests.helpers.moto_server import simulated_s3

    with ExitStack() as stack:
        if "AWS_ENDPOINT_URL" not in os.environ:
            stack.enter_context(simulated_s3(BUCKET))
        else:
            boto3.client("s3").create_bucket(Bucket=BUCKET)
        with FaultProxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
            os.environ["AWS_ENDPOINT_URL"] = proxy.url
            yield proxy


@dataclass(frozen=True)
class Restart:
    """The first progress after workers were lost: when, in Unix time, and how long after the last one before it."""

    at_s: float
    silence_s: float

    def since_s(self, begun: list[float]) -> float:
        """Seconds since the last of these times before it."""
        return min(self.at_s - one for one in begun if one < self.at_s)


class Chaos:
    """A run, its driver, and what is done to them."""

    def __init__(self, head: RealHead, proxy: FaultProxy, folder: Path, interval_s: float) -> None:
        import ray

        self._head, self._proxy, self._folder, self._interval_s = head, proxy, folder, interval_s
        self._draw, self._epochs = random.Random(0), 1000
        self.storage = f"s3://{BUCKET}/{os.getpid()}"
        self.faults: Counter[str] = Counter()
        self.restarts: list[Restart] = []
        self.began_s = self.ended_s = self._heard_s = 0.0
        self._restarted = False
        self._driver: subprocess.Popen[str] | None = None
        self._listening: threading.Thread | None = None
        self._nodes = ExitStack()
        self._numbers = itertools.count()
        ray.init(address=head.gcs, log_to_driver=False, logging_level="ERROR")
        self._node = self._add_node()

    def train(self, seconds: float, every_s: float, faults: list[str]) -> None:
        """For so many seconds from the first step on a fault at a time; then to the end of the epoch."""
        say("starting the run")
        self._start()
        self._await_progress()
        say(f"training; a fault every {every_s:.0f} s for {seconds / 60:.0f} minutes, then to the end of an epoch")
        due = self.began_s
        for fault in itertools.cycle(faults):
            due += every_s
            if due >= self.began_s + seconds:
                break
            time.sleep(max(due - time.monotonic(), 0))
            self._strike(fault)
        time.sleep(max(due - time.monotonic(), 0))
        self._strike("stop", last=True)
        self._await_end(900, 0)
        self.ended_s = time.monotonic()

    def result(self) -> dict[str, object]:
        """Of the finished run.

        Raises:
            SystemExit: it is not finished, somebody owns it, or restarts are missing or too many.
            AssertionError: somebody still works for it.
        """
        from tests.helpers.nodes import wait_for

        record = self._record()
        if (record["status"], record["owner"]) != ("finished", None):
            raise SystemExit(f"the run is {record['status']}, and owned by {record['owner']}")
        wait_for(lambda: not self._workers(), 30, "workers outlive the run")
        causes = Counter(one["cause"] for one in record["result"]["restarts"])
        for fault, cause in (("kill", "failed"), ("drain", "preempted")):
            if causes[cause] != self.faults[fault]:
                raise SystemExit(f"{self.faults[fault]} times {fault}, and {causes[cause]} restarts as '{cause}'")
        return record["result"]

    def attempts_begun(self) -> list[float]:
        """When the worker groups that took a step began, in Unix time."""
        from mtl import goodput
        from mtl.store import open_store

        accounts = goodput.read(open_store(f"{self.storage}/chaos"))
        return [datetime.fromisoformat(one["began"]).timestamp() for one in accounts]

    def config(self) -> list[str]:
        """Of the run, as words of a command."""
        return ["shapes", "--name", "chaos", "--storage", self.storage, "--epochs", str(self._epochs)]

    def close(self) -> None:
        """End what was started."""
        import ray

        if self._driver is not None and self._driver.poll() is None:
            self._driver.kill()
            self._driver.wait()
        self._nodes.close()
        ray.shutdown()

    def _strike(self, fault: str, *, last: bool = False) -> None:
        say(f"{time.monotonic() - self.began_s:6.0f} s  {fault}")
        self.faults[fault] += 1
        match fault:
            case "kill":
                deadline = time.monotonic() + 120
                while len(found := self._workers()) < 2 and time.monotonic() < deadline:
                    time.sleep(0.5)
                os.kill(self._draw.choice(found), signal.SIGKILL)
            case "stop":
                assert self._driver is not None
                self._driver.terminate()
                self._await_end(120, 143)
                if last:
                    self._epochs = self._epochs_begun()
                self._restarted = True
                self._start()
            case "cut":
                self._proxy.rules = (Rule("reset", match=".*"),)
                time.sleep(CUT_S)
                self._proxy.rules = ()
            case _:
                leaving, self._node = self._node, self._add_node()
                leaving.drain(time.time() + NOTICE_S)

    def _start(self) -> None:
        words = [*self.config(), f"--checkpoint.every-s={self._interval_s}", "--log-every-s=1"]
        words += ["--resources.max-failures=1000", "--resources.workers=2", f"--resources.address={self._head.gcs}"]
        self._driver = subprocess.Popen(
            [sys.executable, str(ROOT / "jobs/train.py"), *words],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._listening = threading.Thread(target=self._listen, args=(self._driver,), daemon=True)
        self._listening.start()

    def _listen(self, driver: subprocess.Popen[str]) -> None:
        assert driver.stdout is not None
        with (self._folder / "driver.log").open("a") as log:
            for line in driver.stdout:
                log.write(line)
                log.flush()
                if "the workers start anew" in line:
                    self._restarted = True
                elif PROGRESS.search(line):
                    now_s = time.monotonic()
                    if self._restarted and self._heard_s:
                        self.restarts.append(Restart(time.time(), now_s - self._heard_s))
                        self._restarted = False
                    self._heard_s = now_s
                    self.began_s = self.began_s or now_s
        driver.stdout.close()

    def _await_end(self, seconds: float, status: int) -> None:
        assert self._driver is not None
        if (got := self._driver.wait(seconds)) != status:
            raise SystemExit(f"the driver ended with {got}, not {status}:\n{self._log()}")

    def _log(self) -> str:
        return (self._folder / "driver.log").read_text()[-6000:]

    def _await_progress(self) -> None:
        deadline = time.monotonic() + 300
        while not self.began_s:
            assert self._driver is not None
            if self._driver.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the run did not start:\n{self._log()}")
            time.sleep(0.2)

    def _workers(self) -> list[int]:
        found: list[int] = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                ours = f"HOME={self._head.folder}".encode() in (process / "environ").read_bytes().split(b"\0")
                if ours and b"TrainWorker" in (process / "cmdline").read_bytes():
                    found.append(int(process.name))
        return found

    def _add_node(self):
        from tests.helpers.nodes import extra_node

        log = self._folder / f"node-{next(self._numbers)}.log"
        return self._nodes.enter_context(extra_node(self._head.gcs, log, cpus=1))

    def _record(self) -> dict[str, object]:
        from mtl.store import open_store

        return json.loads(open_store(f"{self.storage}/chaos").get("run.json"))

    def _epochs_begun(self) -> int:
        checkpoints = self._record()["checkpoints"]
        return checkpoints[0]["epoch"] + 1  # type: ignore[index]


def undisturbed_ledger(words: list[str], steps: int) -> str:
    """What one process that reads the data of so many steps, and does nothing else, adds up."""
    from mtl import arguments
    from mtl.local import solitary
    from mtl.mixing import training_order, training_sets
    from mtl.parts import build_loader, build_specs

    config = arguments.parse(words).config
    sets = training_sets(config)
    specs, order = build_specs(config, sets[0].manifest), training_order(config, sets)
    say(f"reading {steps:,} steps undisturbed")
    loader = build_loader(config, specs, sets, order, range(steps), solitary())
    return f"{sum(batch.ledger for batch in loader) % 2**64:016x}"


if __name__ == "__main__":
    main()
