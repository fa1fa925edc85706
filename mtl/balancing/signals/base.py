"""What fills `TaskStats` and applies the weights: the part of a step that balancing decides."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol, final

import torch
import torch.distributed as dist
from torch import Tensor

from mtl.balancing.base import Balancer, Needs, TaskStats
from mtl.balancing.telemetry import Telemetry


class Signal(Protocol):
    """One step's forwards and backwards. Called in this order, the middle two once for each micro-batch.

    The losses are sums over this rank's valid labels; what the backward leaves in the parameters' gradients is, over
    all ranks, that of sum_k w_k p_k L_k: L_k the mean over the valid labels of the global batch, p_k the task's own
    weight.
    """

    def begin(self, stats: TaskStats) -> None:
        """A step of which counts, step and epoch are known."""
        ...

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Outputs by task."""
        ...

    def backward(self, sums: Tensor, last: bool) -> None:
        """Take in the sums of losses [K] of a micro-batch; whether it is the step's last one."""
        ...

    def end(self) -> TaskStats:
        """The step's statistics, gradients being ready."""
        ...


@final
class Ranks:
    """Sums over the ranks of the group that averages gradients.

    That is the default group. A second one inside backward would break the order that torch documents for collectives
    of several groups.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.size, self.device = size, device

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def begin_sum(self, values: Tensor) -> Callable[[], Tensor]:
        """Begin to sum in place; calling the result waits for it."""
        work = dist.all_reduce(values, async_op=True) if self.size > 1 else None

        def wait() -> Tensor:
            if work is not None:
                work.wait()
            return values

        return wait

    def first(self, values: Tensor) -> Tensor:
        """Rank 0's, where devices may differ: GPUs of two kinds solve a small problem to different last digits."""
        if self.size > 1 and self.device.type == "cuda":
            dist.broadcast(values, 0)
        return values


@final
class Weigher:
    """A balancer, and the weights that it last gave each task.

    Args:
        preference: the tasks' own weights p_k, [K]: they multiply losses before the balancer sees them.
        kinds: of the tasks.
    """

    def __init__(self, balancer: Balancer, preference: Sequence[float], kinds: tuple[str, ...], ranks: Ranks) -> None:
        self.balancer, self.kinds, self.ranks = balancer, kinds, ranks
        self.tasks, self.preference = len(preference), torch.tensor(preference, dtype=torch.float64)
        self.known = torch.ones(self.tasks, dtype=torch.float64).to(ranks.device)
        self._asked = self.known
        self.telemetry = Telemetry(self.tasks, ranks.device)

    @property
    def needs(self) -> Needs:
        """What the balancer must be told."""
        return self.balancer.needs

    def share(self, stats: TaskStats) -> Tensor:
        """What makes a sum over some valid labels a share of p_k times the global mean: [K], on the device."""
        counts = torch.where(stats.counts > 0, stats.counts, torch.ones_like(stats.counts))
        return (self.preference / counts).to(self.ranks.device)

    def ask(self, stats: TaskStats) -> Tensor:
        """Weights [K] on the device: new ones for the tasks present, the last ones for the others; ones where what is
        known, or what the balancer makes of it, is not finite. They are remembered once `learn` is called."""
        finite = stats.finite()
        made = self.balancer.weights(_harmless(self._weighed(stats), finite)).to(self.ranks.device).double()
        made = torch.where(made.isfinite().all() & finite, made, torch.ones_like(made))
        present = (stats.counts > 0).to(self.ranks.device)
        self._asked = self.ranks.first(torch.where(present, made, self.known))
        return self._asked

    def told(self, stats: TaskStats) -> bool:
        """Whether a step's statistics have what the balancer needs; between two exact Gram matrices they have not."""
        looks_at_losses = self.needs & (Needs.LOSSES | Needs.HISTORY | Needs.POST_STEP_LOSSES)
        lacks_losses = bool(looks_at_losses) and stats.losses is None
        return not lacks_losses and not (Needs.GRAM in self.needs and stats.gram is None)

    def learn(self, stats: TaskStats, after: Tensor | None = None) -> None:
        """The step was finite: remember its weights, and let the balancer learn from it.

        Args:
            after: this rank's sums of losses [K] on the same batch, after the step.
        """
        if self.told(stats):
            self.known = self._asked
            post_losses = None if after is None else self.ranks.sum(after * self.share(stats))
            if post_losses is not None and stats.losses is not None:  # after a step too long, nothing is gained
                post_losses = torch.where(post_losses.isfinite(), post_losses, stats.losses)
            stats = self._weighed(stats)
            self.telemetry.add(stats, self.known)
            self.balancer.update(stats, post_losses)

    def _weighed(self, stats: TaskStats) -> TaskStats:
        """What the balancer sees: a task of weight zero is only watched, so to it there are no labels of it."""
        return replace(stats, kinds=self.kinds, counts=stats.counts * (self.preference > 0))

    def state_dict(self) -> dict[str, Any]:
        """The balancer's state and the last weights, as plain JSON values."""
        return {"method": self.balancer.state_dict(), "weights": self.known.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.balancer.load_state_dict(state["method"])
        self.known = self._asked = torch.tensor(state["weights"], dtype=torch.float64).to(self.ranks.device)


def _harmless(stats: TaskStats, finite: Tensor) -> TaskStats:
    """`stats`, with losses of one and orthogonal gradients of length one unless they are `finite`.

    A routine that a balancer calls may raise on a NaN, within a backward and on some ranks only. A choice between
    tensors needs no answer from the device.
    """
    losses, gram = stats.losses, stats.gram
    if losses is not None:
        losses = torch.where(finite, losses, torch.ones_like(losses))
    if gram is not None:
        gram = torch.where(finite, gram, torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
    return replace(stats, losses=losses, gram=gram)


Scale = Callable[[], float]
"""By what a step's losses are multiplied for the sake of half precision; its gradients come out as large."""


def guarded(loss: Tensor) -> Tensor:
    """`loss`, with a gradient that is not finite where it is not itself, so that every rank hears of it."""
    return loss * (1 + 0 * loss.detach())
