"""What a run's balancer did, in words and as static weights.

Gama and Grassi 2025 find that static weights averaged from a balancer's nearly match it, at the price of a plain step.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from mtl.errors import RunError
from mtl.store import Store

CONFLICT = -0.1
"""A mean cosine below this is a conflict; the noise of small batches stays above it."""

_APART = 3.0  # norms of two tasks that differ by more than this factor are worth balancing
_DIGITS = 4  # significant ones, as in a sweep

SILENT = "The method looked at no gradients, so it is not known whether the tasks conflict."

_MEASURED = "This was measured on the gradients of the shared parameters themselves."
_STAND_IN = (
    "This was seen at the boundary, a stand-in for the shared parameters, whose own gradients may agree or conflict "
    "otherwise; --balancing.backend exact measures them."
)

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Distilled:
    """Means over a run.

    Attributes:
        weights: static weights by task, of sum K: the tasks' own times the balancer's.
        norms: of the tasks' gradients; empty where the method looked at none.
        cosines: by pair, `a/b`.
        overlap: by pair, the share of the scarcer label's samples that carry both.
        exact: whether norms and cosines are of the shared parameters' gradients, rather than of those at the boundary.
    """

    weights: dict[str, float]
    norms: dict[str, float]
    cosines: dict[str, float]
    overlap: dict[str, float]
    exact: bool = False


def rows_of(run: Store) -> Iterator[Row]:
    """The rows of balancing in a run's metrics, each step from the highest attempt that wrote it."""
    latest: dict[int, Row] = {}
    for name in sorted(run.list("metrics/")):
        for line in run.get(name).decode().splitlines():
            row = json.loads(line)
            if "balancing" in row:
                latest[row["step"]] = row["balancing"]
    yield from latest.values()


def distil(rows: Iterable[Row], own: Mapping[str, float]) -> Distilled:
    """Average the rows of a run.

    Args:
        own: the weights that its configuration gives the tasks.

    Raises:
        RunError: there are no rows.
    """
    rows = list(rows)
    if not rows:
        raise RunError(
            "The run has recorded no weights.",
            got="no row of metrics with balancing",
            expected="a run that trained for some steps",
            do="train it further, with the balancing method to distil",
        )
    made = {
        task: weight * _mean((row["weights"][task], row["steps"][task]) for row in rows) for task, weight in own.items()
    }
    total = sum(made.values()) or 1.0
    weights = {task: float(f"{len(made) * weight / total:.{_DIGITS}g}") for task, weight in made.items()}
    # Without the noise of the batches where that is known: noise makes tasks look more alike, or less, than they are.
    noiseless = [row["unbiased"] for row in rows if "unbiased" in row]
    looked = noiseless or [row for row in rows if "norms" in row]
    norms = {task: _mean((row["norms"][task], 1.0) for row in looked) for task in own} if looked else {}
    pairs = looked[0]["cosines"] if looked else {}
    cosines = {pair: _mean((row["cosines"][pair], 1.0) for row in looked) for pair in pairs}
    overlap = {
        pair: _mean((row["overlap"][pair], 1.0) for row in rows if "overlap" in row)
        for pair in next((row["overlap"] for row in rows if "overlap" in row), {})
    }
    exact = bool(noiseless) or (bool(looked) and all(row.get("seen") == "exact" for row in looked))
    return Distilled(weights, norms, cosines, overlap, exact)


def verdict(found: Distilled) -> list[str]:
    """Whether the tasks conflict, and whether a balancer would pay, one sentence a line."""
    lines: list[str] = []
    scarce = [pair for pair, share in found.overlap.items() if share < 0.5]
    if not found.cosines:
        lines.append(f"{SILENT} With --balancing.backend boundary it watches them, at about the price of a plain step.")
    else:
        against = sorted((c, pair) for pair, c in found.cosines.items() if c < CONFLICT)
        if against:
            pairs = ", ".join(f"{pair.replace('/', ' and ')} ({c:+.2f})" for c, pair in against)
            lines.append(f"These tasks pull the shared part in different directions, on average: {pairs}.")
            lines.append("A method that resolves conflicts, such as upgrad or cagrad, may pay: compare it with static.")
        else:
            lowest = min(found.cosines.values())
            lines.append(f"The tasks do not conflict on average: the lowest mean cosine is {lowest:+.2f}.")
        norms = [norm for norm in found.norms.values() if norm > 0]
        ratio = max(norms) / min(norms) if norms else 1.0
        if ratio > _APART:
            lines.append(f"Their gradients differ in length by a factor of {ratio:.1f}: weights matter.")
        elif not against:
            lines.append("Their gradients are of like length: a balancer has little to gain over equal weights.")
        lines.append(_MEASURED if found.exact else _STAND_IN)
    if scarce and found.cosines and not found.exact:
        pairs = ", ".join(pair.replace("/", " and ") for pair in scarce)
        lines.append(
            f"Fewer than half the labelled samples are shared by {pairs}: from there such a conflict is underestimated."
        )
    return lines


def conclusion(run: Store, own: Mapping[str, float]) -> list[str]:
    """The verdict on a whole run, for its summary; nothing where no two tasks were trained.

    Args:
        own: the weights that its configuration gives the tasks.
    """
    rows = list(rows_of(run))
    if sum(weight > 0 for weight in own.values()) < 2 or not rows:
        return []
    return verdict(distil(rows, own))


def sweep_file(found: Distilled) -> str:
    """A sweep file, YAML, whose first trial has these weights."""
    start = {f"tasks.{task}.weight": weight for task, weight in found.weights.items() if weight > 0}
    return yaml.safe_dump({"starts": [start]}, sort_keys=False)


def _mean(pairs: Iterable[tuple[float, float]]) -> float:
    total = count = 0.0
    for value, weight in pairs:
        total, count = total + value * weight, count + weight
    return total / count if count else 0.0
