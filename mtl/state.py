"""What steps change, as one thing: taken between two of them for a checkpoint, and put back from one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from mtl.balancing.signals import Weigher
from mtl.checkpoint import Checkpoint, load_newest, restore_model
from mtl.ema import Ema
from mtl.errors import CheckpointError
from mtl.model import MultiTaskModel
from mtl.optimizer_state import optimizer_tensors, restore_optimizer
from mtl.precision import Precision
from mtl.record import Commit, Record
from mtl.runtime import Runtime
from mtl.selection import Selection
from mtl.store import Store

Files = dict[str, dict[str, Tensor]]


@final
@dataclass(frozen=True)
class State:
    """All of it but where training stands."""

    model: MultiTaskModel
    optimizer: torch.optim.Optimizer
    weigher: Weigher
    precision: Precision
    ema: Ema | None
    selection: Selection

    def take(self) -> tuple[Files, dict[str, Any]]:
        """Tensors, not copied, and JSON, for `save`."""
        tensors, optimizer = optimizer_tensors(self.optimizer, self._names())
        files: Files = {"model": self.model.state_dict(), "optimizer": tensors}
        values: dict[str, Any] = {
            "optimizer": optimizer,
            "balancer": self.weigher.state_dict(),
            "precision": self.precision.state(),
            "selection": self.selection.state(),
        }
        if self.ema is not None:
            files["ema"], values["ema"] = self.ema.state()
        return files, values

    def restore(self, saved: Checkpoint) -> None:
        """Go on from what was taken.

        Raises:
            CheckpointError: it is another configuration's.
        """
        values: Any = saved.state
        restore_model(self.model, saved.files["model"])
        restore_optimizer(self.optimizer, self._names(), saved.files["optimizer"], values["optimizer"])
        self.weigher.load_state_dict(values["balancer"])
        if "precision" in values:  # an earlier version had neither
            self.precision.restore(values["precision"])
            self.selection.restore(values["selection"])
        if self.ema is not None:
            self.ema.restore(saved.files["ema"], values["ema"])

    def _names(self) -> dict[torch.nn.Parameter, str]:
        return {parameter: name for name, parameter in self.model.named_parameters()}


def newest(
    store: Store, record: Record | None, order_id: str, runtime: Runtime, say: Callable[[str], None]
) -> tuple[Commit, Checkpoint] | None:
    """The newest commit of a run that is sound, loaded; the same on every rank. None where there is none.

    Args:
        order_id: of the samples that are to follow.
        say: receives a sentence for each damaged one.

    Raises:
        CheckpointError: it was written for another order, or the ranks could not load the same one.
    """
    found = load_newest(store, record.checkpoints, say) if record is not None else None
    step = found[0].step if found else 0
    if found and found[1].state["order_id"] != order_id:
        raise CheckpointError(
            "The checkpoint was written for another order of samples.",
            got=f"order_id {found[1].state['order_id']}",
            expected=order_id,
            do="use the data sets, seed and batch it was started with, or another run name",
        )
    total = int(runtime.sum(torch.tensor([step]))[0])
    if total != step * runtime.world_size:
        raise CheckpointError(
            "The workers could not load the same checkpoint.",
            got=f"step {step} here, an average of {total / runtime.world_size:g} over all workers",
            do="rerun the command; if it happens again, storage returns different contents to different workers",
        )
    return found
