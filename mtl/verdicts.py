"""What a profile means in words: a line for each part of a step, and what to change."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

_WORTH_SAYING = 0.1  # share of a step from which a part is worth a change


@final
@dataclass(frozen=True)
class Breakdown:
    """The time of some steps.

    Attributes:
        seconds: by part; they sum to total_s.
        operators: those with the most time of their own, with their shares.
    """

    steps: int
    warm_up: int
    total_s: float
    seconds: Mapping[str, float]
    operators: Sequence[tuple[str, float]]
    gpu: bool

    def share(self, part: str) -> float:
        """Of a part of a step."""
        return self.seconds.get(part, 0.0) / max(self.total_s, 1e-9)

    def lines(self) -> Iterator[str]:
        """The table, and the advice."""
        step_ms = 1e3 * self.total_s / self.steps
        yield f"profile: {self.steps} steps of {step_ms:,.1f} ms each, after {self.warm_up} of warm-up"
        for part, seconds in sorted(self.seconds.items(), key=lambda item: -item[1]):
            each_ms = 1e3 * seconds / self.steps
            yield f"  {part:<11}{self.share(part):>6.1%}  {each_ms:>10,.2f} ms  {_MEANING[part]}"
        kind = "kernels" if self.gpu else "operators"
        yield f"  largest {kind}: " + ", ".join(f"{name[:60]} {share:.0%}" for name, share in self.operators[:3])
        for text in self.advice():
            yield f"  to change: {text}"

    def advice(self) -> Iterator[str]:
        """What would help, the largest part first."""
        parts = sorted((part for part in _ADVICE if self.share(part) >= _WORTH_SAYING), key=self.share, reverse=True)
        for part in parts:
            yield f"{part}: {_ADVICE[part]}"
        computing = self.share("forward") + self.share("backward")
        if computing >= 0.8:
            yield f"forward and backward are {computing:.0%}: " + (_ON_GPU if self.gpu else _ON_CPU)


_MEANING = {
    "loader": "waiting for a batch",
    "forward": "the model's forward",
    "backward": "the backward, without waiting for others",
    "optimizer": "the update",
    "collective": "nothing but sums over workers under way",
    "balancing": "statistics of the tasks and their weights",
    "other": "copies, standardising, losses, checks, Python",
}

_ADVICE = {
    "loader": "the share in `blame` says whether storage or decoding; loader.memory keeps data, loader.threads decodes",
    "optimizer": "its time does not depend on the batch: a larger global_batch spreads it over more samples",
    "collective": "fewer workers with larger parts of the batch, or a faster network between them",
    "balancing": "balancing.backend=boundary, lag=1, or a larger refresh_steps; static weights cost nothing",
    "other": "larger parts of the batch (fewer steps, max_micro_batch) spread what the host does between kernels",
}

_ON_GPU = "lower precision, a larger batch, a smaller model or fewer pixels (augment.size_px)"
_ON_CPU = "more cores (resources.cpus_per_worker, resources.workers), a smaller model or fewer pixels (augment.size_px)"
