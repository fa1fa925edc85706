"""From rounds of results to printed metrics: medians, spreads, and paired ratios to the best peer."""

from collections.abc import Iterable, Sequence
from statistics import median

from benchmarks.common import emit, say
from benchmarks.peers.runs import Result

BENCH = "loader"
Series = dict[str, list[Result]]
"""Results by name, one for each round; shorter where something failed."""

_RATE, _CPU = ("images_per_s", "images/s"), ("cpu_ms_per_image", "CPU-ms/image")


def with_decoder(name: str) -> str:
    """What a peer with our decoder is called."""
    return f"{name}+decoder"


def peers(series: Series, names: Sequence[str], prefix: str = "") -> None:
    """Print every loader's figures, and ours over those of the best peer."""
    for name, results in series.items():
        for key, unit in (_RATE, _CPU):
            values = [result[key] for result in results if key in result]
            if values:
                emit(BENCH, f"{prefix}{key}/{name}", median(values), unit)
                spread = (max(values) - min(values)) / median(values)
                emit(BENCH, f"{prefix}{key}/{name}/spread", spread, "range / median")
    documented = [name for name in names if series.get(name)]
    ours_inside = [with_decoder(name) for name in names if series.get(with_decoder(name))]
    for metric, among, (key, unit), best in (
        ("peer_ratio", documented, _RATE, max),
        ("same_decoder_ratio", ours_inside, _RATE, max),
        ("cpu_ratio", documented, _CPU, min),
    ):
        if among and series.get("ours"):
            chosen = best(among, key=lambda name, key=key: median(result[key] for result in series[name]))
            ratio(f"{prefix}{metric}", series["ours"], series[chosen], key, unit, f"ours / {chosen}")


def ratio(
    metric: str, over: Sequence[Result], under: Sequence[Result], key: str, unit: str, what: str, factor: float = 1
) -> None:
    """Print the median over rounds of over / (factor x under), with its range for a person."""
    if not over or not under:
        say(f"{metric}: not measured, something that it compares failed")
        return
    ratios = [a[key] / (factor * b[key]) for a, b in zip(over, under, strict=False)]
    emit(BENCH, metric, median(ratios), "ratio", baseline=factor * _middle(under, key), ratio=median(ratios))
    say(
        f"{metric} ({what}, {unit}): {median(ratios):.3f}, from {min(ratios):.3f} to {max(ratios):.3f}; "
        f"{_middle(over, key):.4g} / {factor * _middle(under, key):.4g}"
    )


def _middle(results: Iterable[Result], key: str) -> float:
    return median(result[key] for result in results)
