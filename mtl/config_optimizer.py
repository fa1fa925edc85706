"""The section of the configuration that says how fast what learns."""

from typing import Literal, Self

from pydantic import model_validator

from mtl.errors import ConfigError
from mtl.schema import Section, identity


class Optimizer(Section):
    """The optimizer and its schedule; lengths are in epochs of samples, so worker counts do not matter."""

    name: Literal["sgd", "adam", "adamw"] = identity("adam", "sgd (Nesterov momentum) | adam | adamw")
    lr: float = identity(1e-3, "peak learning rate, for the global batch or for lr_batch", search="log", gt=0)
    momentum: float = identity(0.9, "momentum of sgd; first beta of adam", ge=0, lt=1)
    lr_scaling: Literal["none", "linear", "sqrt"] = identity(
        "none", "lr is for the global batch | times global_batch / lr_batch (sgd) | times its square root (adam)"
    )
    lr_batch: int | None = identity(None, "the batch that lr was found at, for lr_scaling", ge=1)
    head_lr: dict[str, float] = identity({}, "by task: its own parameters' learning rate, as a multiple of lr")
    backbone_lr: float = identity(
        1.0, "learning rate of the backbone, as a multiple of lr; less for a pretrained one", gt=0
    )
    stage_decay: float = identity(
        1.0, "each stage of the backbone learns at this share of the rate of the stage after it", gt=0, le=1
    )
    weight_decay: float = identity(0.0, "not applied to biases and norms", ge=0)
    warmup_epochs: float = identity(0.0, "linear warm-up from zero", ge=0)
    schedule: Literal["cosine", "linear", "constant", "step"] = identity(
        "cosine", "after the warm-up: down to zero | down to zero | level | times step_factor at each of step_epochs"
    )
    step_epochs: tuple[float, ...] = identity((), "schedule step: when, in epochs from the start")
    step_factor: float | None = identity(None, "schedule step: by how much", gt=0, lt=1)
    clip_norm: float | None = identity(None, "largest norm of the whole gradient", gt=0)
    ema_epochs: float | None = identity(
        None, "span, in epochs, of an average of the weights that is evaluated and kept beside them", gt=0
    )

    @model_validator(mode="after")
    def _belongs_together(self) -> Self:
        if (self.lr_scaling == "none") != (self.lr_batch is None):
            raise ConfigError(
                "optimizer.lr_scaling and optimizer.lr_batch need each other.",
                got=f"lr_scaling {self.lr_scaling}, lr_batch {self.lr_batch}",
                expected="both, or neither",
                do="name the batch that lr was found at, or leave both out",
            )
        if not (self.schedule == "step") == bool(self.step_epochs) == (self.step_factor is not None):
            raise ConfigError(
                "optimizer.schedule=step, step_epochs and step_factor need each other.",
                got=f"schedule {self.schedule}, step_epochs {list(self.step_epochs)}, step_factor {self.step_factor}",
                expected="all of them, or another schedule and neither of the two",
                do="say when the learning rate falls and by how much, such as 30 60 80 and 0.1",
            )
        if list(self.step_epochs) != sorted(set(self.step_epochs)) or any(at <= 0 for at in self.step_epochs):
            raise ConfigError(
                "optimizer.step_epochs must rise from above zero.",
                got=list(self.step_epochs),
                expected="such as 30 60 80",
            )
        if any(factor <= 0 for factor in self.head_lr.values()):
            raise ConfigError("optimizer.head_lr must be above zero.", got=self.head_lr, expected="such as 10")
        return self

    def peak_lr(self, global_batch: int) -> float:
        """The peak learning rate for this global batch.

        Linear: Goyal et al. 2017 (SGD). Square root: Krizhevsky 2014; for Adam, Malladi et al. 2022.
        """
        if self.lr_batch is None:
            return self.lr
        ratio = global_batch / self.lr_batch
        return self.lr * (ratio if self.lr_scaling == "linear" else ratio**0.5)

    def scaled(self, global_batch: int) -> str | None:
        """How the peak learning rate follows from the configured one, None if it is the same."""
        if self.lr_batch is None:
            return None
        rule = f"{global_batch:,} / {self.lr_batch:,}"
        how = rule if self.lr_scaling == "linear" else f"sqrt({rule})"
        return f"learning rate {self.peak_lr(global_batch):.4g} = {self.lr:g} x {how}"
