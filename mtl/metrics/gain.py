"""What several tasks gain or lose by being trained together."""

from collections.abc import Mapping


def delta_m(metrics: Mapping[str, float], single: Mapping[str, float], larger_is_better: Mapping[str, bool]) -> float:
    """Mean relative gain of a multi-task model over single-task models (Maninis et al. 2019, equation 4).

    Args:
        metrics: one metric for each task.
        single: the same metric of a model trained on that task alone; not zero.
        larger_is_better: of each task's metric; where it is not, a fall counts as a gain.

    Returns:
        A fraction: 0.02 is two percent better than the single-task models on average, -0.02 two percent worse.
    """
    gains = [
        (value - single[task]) / abs(single[task]) * (1 if larger_is_better[task] else -1)
        for task, value in metrics.items()
    ]
    return sum(gains) / len(gains)
