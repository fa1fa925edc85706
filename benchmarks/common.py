"""What every benchmark prints: one JSON line a metric, with the machine that it was measured on."""

import json
import os
import platform
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version


def emit(
    bench: str,
    metric: str,
    value: float,
    unit: str,
    *,
    baseline: float | None = None,
    ratio: float | None = None,
) -> None:
    """Print one result: `value` in `unit`, and what it was compared with, where it was."""
    line = {
        "bench": bench,
        "metric": metric,
        "value": _short(value),
        "unit": unit,
        "baseline": _short(baseline),
        "ratio": _short(ratio),
        "environment": environment(),
    }
    print(json.dumps(line), flush=True)


@cache
def environment() -> dict[str, str | int]:
    """The machine and the versions that decide a result."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count() or 1,
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "ray", "numpy", "pyarrow", "simplejpeg")},
    }


def say(text: str) -> None:
    """A line for the person who waits; results alone go to stdout."""
    print(text, file=sys.stderr, flush=True)


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = (line.partition(":")[2].strip() for line in file if line.startswith("model name"))
            return next(names, platform.machine())
    except OSError:
        return platform.processor() or platform.machine()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
