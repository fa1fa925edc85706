"""What a person sees of a run: progress with the time left, evaluations as tables, notes. The same lines in a log."""

import io
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO, final

from rich.console import Console
from rich.table import Table

from mtl.config import Config
from mtl.task_config import PLAIN

_ORDER = (
    *("labels", "accuracy", "top5", "precision", "recall", "f1", "f1_micro", "map", "auroc", "ece"),
    *("mistake_severity", "consistency", "within_1", "kappa", "kl"),
    *("error_degrees", "within_15_degrees", "mae", "rmse", "r2"),
)


@final
class RunConsole:
    """Shows the events of a run; `__call__` is the listener that a runtime takes."""

    def __init__(self, stream: TextIO | None = None) -> None:
        # Under torchrun every rank runs the script; the first one speaks.
        where = stream or (sys.stdout if os.environ.get("RANK", "0") == "0" else io.StringIO())
        self._console = Console(file=where, width=None if where.isatty() else 120, highlight=False, soft_wrap=True)
        self._began = time.monotonic()

    def line(self, text: str) -> None:
        """One line, stamped with the seconds since the start."""
        self._console.print(f"{clock(time.monotonic() - self._began)}  {text}", markup=False)

    def __call__(self, event: dict[str, Any]) -> None:
        """Show one event of a runtime."""
        self.line(sentence(event))

    def table(self, title: str, metrics: dict[str, dict[str, float]]) -> None:
        """Metrics per task."""
        names = [name for name in _ORDER if any(name in m for m in metrics.values())]
        table = Table(title=title, title_justify="left")
        table.add_column("task")
        for name in names:
            table.add_column(name.replace("_", " "), justify="right")
        for task, values in metrics.items():
            table.add_row(task, *(_cell(name, values.get(name)) for name in names))
        self._console.print(table)

    def conclude(self, config: Config, result: dict[str, Any]) -> int:
        """The end of a job: its tables, where the run is, what to do next. Returns the exit status."""
        run = f"{config.storage.rstrip('/')}/{config.name}".removeprefix(f"{Path.cwd()}/")
        if result["status"] == "stopped":
            where = f"after step {result['steps']:,}, committed" if result["steps"] else "before the first step"
            self.line(f"stopped {where}; rerun the same command to go on")
            return 143
        for split, metrics in result["metrics"].items():
            self.table(f"{split}: {config.name}", metrics)
        self.line(f"finished: {result['steps']:,} steps in {clock(result['seconds'])}, ledger {result['ledger']}")
        if "goodput" in result:
            self.line(goodput_line(result))
        if "images_per_s" in result:
            self.line(speed(result))
        for text in result.get("verdict", ()):
            self.line(text)
        for text in (
            f"run       {run}  (config.yaml, checkpoints/, metrics/*.jsonl)",
            f"again     python jobs/evaluate.py {run} --split test",
            f"pictures  python jobs/train.py --config {run}/config.yaml --preview samples.png",
        ):
            self._console.print(text, markup=False)
        return 0


def sentence(event: dict[str, Any]) -> str:
    """What an event of a runtime says."""
    match event["kind"]:
        case "progress":
            return progress_line(event)
        case "evaluation":
            summary = "  ".join(f"{task} {_headline(m)}" for task, m in event["metrics"].items())
            bad = f"  ({event['quarantined']} of {event['rows']} rows quarantined)" if event["quarantined"] else ""
            return f"{event['split']} after epoch {event['epoch']}: {summary}{bad}"
        case "commit":
            return f"commit at step {event['step']:,} ({event['seconds']:.1f} s)"
        case _:
            return str(event["text"])


def goodput_line(result: dict[str, Any]) -> str:
    """How much of a run's time was useful, and what its restarts cost."""
    line = f"goodput {result['goodput']:.0%}: {clock(result['useful_s'])} of steps in {clock(result['wall_s'])}"
    lost = [f"{one['cause']} ({one['replayed_s']:.0f} s replayed)" for one in result["restarts"]]
    return f"{line}; {counted(len(lost), 'restart')}: {', '.join(lost)}" if lost else line


def progress_line(event: dict[str, Any]) -> str:
    """One line of training progress."""
    losses = "  ".join(f"{task} {loss:.3f}" for task, loss in event["loss"].items())
    bad = "".join(f"  {name} {event[name]}" for name in ("skipped", "quarantined") if event[name])
    waits = {name: share for name, share in event["blame"].items() if name != "compute"}
    causes = ", ".join(f"{name} {share:.0%}" for name, share in waits.items() if share >= 0.01)
    waiting = f"waits {sum(waits.values()):.0%}" + (f" ({causes})" if causes else "")
    return (
        f"step {event['step']:,}/{event['steps']:,}  {clock(event['eta_s'])} left  epoch {event['epoch']:.2f}  "
        f"{speed(event)}  {waiting}  lr {event['lr']:.2g}  "
        f"loss: {losses}{bad}"
    )


def speed(of: dict[str, Any]) -> str:
    """How fast, of a progress row or a result, and where they are known the share of the device's peak and the cost."""
    parts = [f"{of['images_per_s']:,.0f} images/s"]
    if "mfu" in of:
        parts.append(f"MFU {of['mfu']:.0%}")
    if "cost_per_epoch" in of:
        in_all = f", {of['cost']:.4g} in all" if "cost" in of else ""
        parts.append(f"cost {of['cost_per_epoch']:.3g} an epoch{in_all}")
    return "  ".join(parts)


def counted(n: int, unit: str) -> str:
    """`n` and its unit: 1 step, 1,200 steps."""
    return f"{n:,} {unit}" + ("" if n == 1 else "s")


def clock(seconds: float) -> str:
    """m:ss, or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _headline(metrics: dict[str, float]) -> str:
    for name in ("accuracy", "error_degrees", "mae"):
        if name in metrics:
            return _cell(name, metrics[name])
    return ""


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return ""
    if name == "labels":
        return f"{int(value):,}"
    if name == "error_degrees":
        return f"{value:.1f}°"
    return f"{value:.3g}" if name in PLAIN else f"{100 * value:.1f} %"
