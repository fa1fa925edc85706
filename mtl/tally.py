"""What an evaluation adds up over batches and workers, and the metrics that come of it.

Almost everything is a sum, reduced once at the end. Two metrics are not (auroc, map): for a task that asks for one of
them the scores of all samples are kept, and gathered class by class at the end, so that beside a rank's own scores no
more than one class of the whole split is in memory. Binned approximations would need neither, but are not exact.
"""

import math
from collections.abc import Callable, Mapping
from typing import final

import torch
from torch import Tensor

from mtl.metrics import auroc, average_precision
from mtl.runtime import Runtime
from mtl.task_config import EACH
from mtl.tasks import Multiclass, Multilabel, TaskSpec

_RANKINGS: dict[str, Callable[[Tensor, Tensor], float]] = {"auroc": auroc, "map": average_precision}


@final
class Tally:
    """Sums and scores of one rank."""

    def __init__(self, specs: list[TaskSpec]) -> None:
        self._specs = specs
        self._sums: dict[str, Tensor] = {}
        self._scores: dict[str, list[tuple[Tensor, Tensor]]] = {
            spec.name: [] for spec in specs if {*_RANKINGS} & {*spec.further}
        }

    def add(self, outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor], rows: Tensor) -> None:
        """Take in a batch.

        Args:
            outputs, labels: by task.
            rows: which slots hold a sample whose image could be decoded, bool [n].
        """
        for spec in self._specs:
            output, label = outputs[spec.name], labels[spec.name]
            self._add(f"{spec.name}/labels", spec.valid(label).sum())
            self._add(f"{spec.name}/weight", spec.weight_of(label).sum())
            self._add(f"{spec.name}/loss", spec.loss(output, label).double())
            for name, value in spec.tally(output, label).items():
                self._add(f"{spec.name}/{name}", value)
            if spec.name in self._scores and (found := spec.scores(output, label)):
                self._scores[spec.name].append((found[0].cpu(), found[1].cpu()))
            if isinstance(spec, Multiclass) and spec.groups is not None and spec.group_of is not None:
                group = spec.groups.to(output.device)[outputs[spec.group_of].argmax(1)]
                counted = rows.to(output.device) & (group >= 0)
                self._add(f"{spec.name}/consistent", (counted & (output.argmax(1) == group)).sum())
                self._add(f"{spec.name}/compared", counted.sum())

    def _add(self, name: str, value: Tensor) -> None:
        self._sums[name] = self._sums[name] + value if name in self._sums else value

    def metrics(self, runtime: Runtime) -> dict[str, dict[str, float]]:
        """Metrics per task, over all ranks; called by every rank after the same number of batches, at least one."""
        sums = self._reduced(runtime)
        result: dict[str, dict[str, float]] = {}
        for spec in self._specs:
            own = {name.partition("/")[2]: value for name, value in sums.items() if name.startswith(f"{spec.name}/")}
            weight = own["weight"].item()
            loss = own["loss"].item() / weight if weight else 0.0
            found = spec.summary(own)
            if spec.name in self._scores:
                found |= self._ranked(spec, runtime)
            if "compared" in own:
                found["consistency"] = own["consistent"].item() / max(own["compared"].item(), 1)
            result[spec.name] = {**found, "loss": loss, "labels": int(own["labels"])}
        return result

    def _reduced(self, runtime: Runtime) -> dict[str, Tensor]:
        flat = runtime.sum(torch.cat([value.double().reshape(-1).cpu() for value in self._sums.values()]))
        parts = flat.split([value.numel() for value in self._sums.values()])
        return {name: part.view(value.shape) for (name, value), part in zip(self._sums.items(), parts, strict=True)}

    def _ranked(self, spec: TaskSpec, runtime: Runtime) -> dict[str, float]:
        """Means over the classes for which they are defined, and with `each` those of every one of them."""
        scores, answers = (torch.cat(column) for column in zip(*self._scores.pop(spec.name), strict=True))
        sizes = torch.zeros(runtime.world_size, dtype=torch.float64)
        sizes[runtime.rank] = len(scores)
        ends = runtime.sum(sizes).long().cumsum(0).tolist()
        mine = slice(ends[runtime.rank] - len(scores), ends[runtime.rank])
        asked = [name for name in _RANKINGS if name in spec.further]
        values: dict[str, list[float]] = {name: [] for name in asked}
        for column in range(scores.shape[1]):
            whole = torch.zeros(2, ends[-1], dtype=torch.float64)
            whole[:, mine] = torch.stack([scores[:, column].double(), answers[:, column].double()])
            score, answer = runtime.sum(whole)
            known = answer >= 0
            for name in asked:
                values[name].append(_RANKINGS[name](score[known], answer[known] > 0))
        found: dict[str, float] = {}
        for name, column in values.items():
            found[name] = torch.tensor(column).nanmean().nan_to_num().item()
            if EACH in spec.further and isinstance(spec, Multiclass | Multilabel):
                found |= {f"{name}[{c}]": v for c, v in zip(spec.classes, column, strict=True) if not math.isnan(v)}
        return found
