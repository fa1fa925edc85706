"""Our loader against seven others: the same images, crops and batches, two cores each, in alternated rounds.

Each runs in processes of its own (benchmarks/peers/), as its documentation has it and once more with our decoder.
Ratios are medians over rounds of ours / peer in the same round; CPU time is that of the whole process tree. Files are
in the page cache.

    python benchmarks/loader.py [--quick] [--rounds N] [--peers webdataset,torch] [--s3 s3://bucket/prefix] [--parts s3]

The peers are the dependency group `peers`; those that are not installed are left out. See benchmarks/README.md.
"""

import argparse
import random
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.common import emit, say
from benchmarks.peers import BATCH, PEERS, Decoder, report
from benchmarks.peers.faults import proxied
from benchmarks.peers.formats import convert, from_s3, installed, scratch, uploaded
from benchmarks.peers.report import BENCH, Series
from benchmarks.peers.runs import Result, Runs

SAMPLE = ROOT.parent / "shared" / "data" / "imagenet-sample.tar"
PARTS = ("local", "bare", "resume", "memory", "small", "s3", "faulty")


@dataclass(frozen=True)
class Size:
    """How much is measured. All counts are images."""

    rounds: int
    images: int  # in the file set; more than one run reads, so that no epoch ends inside it
    warmup: int  # discarded: enough to fill the shuffle buffers of 1,000 that WebDataset has
    timed: int
    copies: int  # of the file set, for the memory measurement
    small: int  # of CIFAR-10's size
    small_timed: int


FULL = Size(rounds=5, images=4_800, warmup=1_280, timed=3_200, copies=4, small=50_000, small_timed=200_000)
QUICK = Size(rounds=1, images=1_000, warmup=128, timed=384, copies=1, small=4_096, small_timed=4_096)
QUICK_PEERS = ("torch",)  # it starts within seconds, and is installed wherever this project is


def main() -> int:
    """Measure everything; returns the exit status."""
    arguments = parse()
    size = QUICK if arguments.quick else FULL
    rounds = arguments.rounds or size.rounds
    if not arguments.sample.is_file():
        say(f"Nothing is measured: {arguments.sample} is not there; --sample names a tar of CLASS/NAME.jpg.")
        return 0
    parts, address = arguments.parts or PARTS, arguments.s3
    peers = installed(arguments.peers or (QUICK_PEERS if arguments.quick else tuple(PEERS)))
    distant = from_s3(peers) if address and "s3" in parts else []
    with scratch(arguments.scratch) as folder:
        runs = Runs(folder, arguments.cores)
        convert(
            runs,
            peers if "local" in parts else distant,
            arguments.sample,
            size.images,
            size.copies if "memory" in parts else 1,
            size.small if "small" in parts else 0,
        )
        if "local" in parts:
            local(runs, peers, size, rounds)
        if "bare" in parts:
            bare(runs, size, rounds)
        if "resume" in parts:
            resume(runs, size, rounds)
        if "memory" in parts:
            resident(runs, size)
        if "small" in parts:
            from_memory(runs, size, rounds)
        if address and {"s3", "faulty"} & {*parts}:
            with uploaded(folder, ["ours", *(PEERS[name].data for name in distant)], address):
                if "s3" in parts:
                    remote(runs, address, distant, size, rounds)
                if "faulty" in parts:
                    faulty(runs, f"{address}/ours", size, rounds)
        for name in sorted(runs.failed):
            say(f"FAILED: {name}")
        return 1 if runs.failed else 0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="within a minute: one round of ours and torch")
    parser.add_argument("--rounds", type=int, help="alternated rounds; 5 unless --quick")
    parser.add_argument("--peers", type=_names, help=f"of {', '.join(PEERS)}; all that are installed unless given")
    parser.add_argument("--cores", type=int, default=2, help="cores, and workers or threads, of every loader")
    parser.add_argument("--sample", type=Path, default=SAMPLE, help="tar of images, CLASS/NAME.jpg")
    parser.add_argument("--scratch", type=Path, help="keep converted data here for the next time: 6 GB")
    parser.add_argument(
        "--s3", help="measure from this s3:// address too, and remove what is below it; AWS_ENDPOINT_URL is the server"
    )
    parser.add_argument("--parts", type=_parts, help=f"of {', '.join(PARTS)}; all unless given")
    return parser.parse_args()


def _names(text: str) -> tuple[str, ...]:
    return _known(text, tuple(PEERS))


def _parts(text: str) -> tuple[str, ...]:
    return _known(text, PARTS)


def _known(text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := sorted({*names} - {*known}):
        raise argparse.ArgumentTypeError(f"there is no {', '.join(unknown)}")
    return names


def local(runs: Runs, peers: Sequence[str], size: Size, rounds: int) -> None:
    """Rounds of all loaders over local files."""
    report.peers(compare(runs, str(runs.scratch), loaders(peers), size, rounds), peers)


def remote(runs: Runs, address: str, peers: Sequence[str], size: Size, rounds: int) -> None:
    """The same from S3, and ours over local files in each round."""
    here = Entry("local ours", "ours", str(runs.scratch / "ours"), "ours")
    series = compare(runs, address, [*loaders(peers), here], size, rounds)
    beside = series.pop(here.name, [])
    report.peers(series, peers, "s3_")
    report.ratio("s3_cpu_over_local", series["ours"], beside, "cpu_ms_per_image", "CPU-ms/image", "S3 / local")


@dataclass(frozen=True)
class Entry:
    """What runs once a round; `data` is a folder, or a name below where all data is."""

    name: str
    loader: str
    data: str
    decoder: Decoder


def loaders(peers: Sequence[str]) -> list[Entry]:
    """Ours, every peer as documented, and every peer with our decoder."""
    return [
        Entry("ours", "ours", "ours", "ours"),
        *(Entry(name, name, PEERS[name].data, "documented") for name in peers),
        *(Entry(report.with_decoder(name), name, PEERS[name].data, "ours") for name in peers),
    ]


def compare(runs: Runs, below: str, entries: Sequence[Entry], size: Size, rounds: int) -> Series:
    """Rounds of `entries`; their data is `below` a folder or address."""
    runs.expected += rounds * len(entries)
    series: Series = defaultdict(list)
    for _ in range(rounds):
        for entry in entries:
            made = rate(runs, below, entry, size)
            series[entry.name] += [made] if made else []
    return series


def rate(runs: Runs, below: str, entry: Entry, size: Size) -> Result | None:
    """One run of `entry`."""
    return runs.run(
        f"s3 {entry.name}" if below.startswith("s3://") else entry.name,
        "rate",
        loader=entry.loader,
        source=entry.data if Path(entry.data).is_absolute() else f"{below}/{entry.data}",
        decoder=entry.decoder,
        workers=runs.cores,
        warmup=size.warmup,
        images=size.timed,
    )


def bare(runs: Runs, size: Size, rounds: int) -> None:
    """`decode_fraction`: ours over cores times what one core decodes and crops with nothing around it, others idle.

    And `all_cores_fraction`: over what as many such processes make at once, which no loader on this machine can exceed.
    The three take turns.
    """
    runs.expected += 3 * rounds
    (entry,), task = loaders(()), {"images": str(runs.scratch / "images"), "count": size.timed // 4, "warmup": BATCH}
    ours, alone, at_once = list[Result](), list[Result](), list[Result]()
    for _ in range(rounds):
        alone += [one] if (one := runs.run("one core", "core", **task)) else []
        ours += [one] if (one := rate(runs, str(runs.scratch), entry, size)) else []
        at_once += [one] if (one := runs.run("all cores", "all_cores", **task, workers=runs.cores)) else []
    key, unit = "images_per_s", "images/s"
    report.ratio("decode_fraction", ours, alone, key, unit, f"ours / {runs.cores} x one core", runs.cores)
    report.ratio("all_cores_fraction", ours, at_once, key, unit, "ours / all cores at once")


def resume(runs: Runs, size: Size, rounds: int) -> None:
    """`resume_ratio`: first batch at an arbitrary position over first batch at the start of the epoch."""
    runs.expected += 2 * rounds
    chosen = random.Random(0)
    source, cold, resumed = str(runs.scratch / "ours"), [], []
    for _ in range(rounds):
        steps = (0, cold, "cold start"), (chosen.randrange(1, size.images // BATCH), resumed, "resume")
        for step, results, name in steps:
            made = runs.run(name, "first", source=source, workers=runs.cores, step=step)
            results += [made] if made else []
    report.ratio("resume_ratio", resumed, cold, "seconds", "s", "resume / cold start")


def resident(runs: Runs, size: Size) -> None:
    """`rss_bytes`: most that one worker holds over one epoch, above the interpreter with its imports."""
    runs.expected += 1
    images, data = size.images * size.copies, "big" if size.copies > 1 else "ours"
    if made := runs.run("memory", "memory", source=str(runs.scratch / data), workers=runs.cores, images=images):
        emit(BENCH, "rss_bytes", made["rss_bytes"], "bytes")


def from_memory(runs: Runs, size: Size, rounds: int) -> None:
    """`memory_images_per_s`: CIFAR-10-sized images that are kept decoded."""
    runs.expected += rounds
    source = str(runs.scratch / "small")
    spec = {"source": source, "workers": runs.cores, "warmup": size.small, "images": size.small_timed}
    made = [runs.run("small images", "small_rate", **spec) for _ in range(rounds)]
    if rates := [result["images_per_s"] for result in made if result]:
        emit(BENCH, "memory_images_per_s", median(rates), "images/s")


def faulty(runs: Runs, source: str, size: Size, rounds: int) -> None:
    """`faulty_fraction`: rate through a fault proxy over that through a clean one; their ledgers must be equal."""
    spec = {"source": source, "workers": runs.cores, "warmup_steps": size.warmup // BATCH}
    spec["steps"] = (size.warmup + size.timed) // BATCH
    runs.expected += 2 * rounds
    clean: list[Result] = []
    faults: list[Result] = []
    for _ in range(rounds):
        for results, name, rough in ((clean, "clean S3", False), (faults, "faulty S3", True)):
            with proxied(rough=rough) as address:
                made = runs.run(name, "steps", {"AWS_ENDPOINT_URL": address}, **spec)
            results += [made] if made else []
    report.ratio("faulty_fraction", faults, clean, "images_per_s", "images/s", "faulty / clean")
    ledgers = {result["ledger"] for result in [*clean, *faults]}
    if len(ledgers) != 1 or any(result["bad"] for result in [*clean, *faults]):
        say(f"FAILED: rows were lost or doubled: ledgers {ledgers}")
        runs.failed.add("ledger")


if __name__ == "__main__":
    sys.exit(main())
