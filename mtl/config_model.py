"""The sections of the configuration that say what the model is."""

from typing import Literal, Self

from pydantic import model_validator

from mtl.errors import ConfigError
from mtl.schema import Arguments, Section, identity, refuse_unread


class Sharing(Section):
    """What tasks share of the backbone, and what each has for itself: docs/models.md compares the patterns."""

    pattern: Literal["hard", "split", "mmoe", "cgc", "ple", "mtan", "cross-stitch"] = identity(
        "hard",
        "hard: all but the heads | split: the stages before `stage` | mmoe, cgc, ple: mixtures of experts | "
        "mtan: attention on shared maps | cross-stitch: a backbone for each task, mixed",
    )
    stage: str | None = identity(None, "split: the first stage that each task has for itself, such as layer4")
    experts: int | None = identity(None, "mmoe, cgc, ple: shared experts (of a level)", ge=1)
    task_experts: int | None = identity(None, "cgc, ple: each task's own experts (of a level)", ge=1)
    expert_width: int | None = identity(None, "mmoe, cgc, ple: width of each expert", ge=1)
    levels: int | None = identity(None, "ple: levels of experts", ge=2)

    @model_validator(mode="after")
    def _fits_pattern(self) -> Self:
        needed, own = _SHARING[self.pattern], set(self.arguments())
        if own != set(needed):
            raise ConfigError(
                f"The arguments do not fit the sharing pattern '{self.pattern}'.",
                got=", ".join(sorted(own)) or "none",
                expected=", ".join(needed) or "none",
                do="give model.sharing just these, or choose another pattern",
            )
        return self

    def arguments(self) -> dict[str, int | str]:
        """The arguments of the pattern, by name."""
        values = {name: getattr(self, name) for name in type(self).model_fields if name != "pattern"}
        return {name: value for name, value in values.items() if value is not None}


_SHARING = {
    "hard": (),
    "split": ("stage",),
    "mmoe": ("experts", "expert_width"),
    "cgc": ("experts", "task_experts", "expert_width"),
    "ple": ("experts", "task_experts", "expert_width", "levels"),
    "mtan": (),
    "cross-stitch": (),
}


class Model(Section):
    """A backbone, what the tasks share of it, and one head for each."""

    backbone: str = identity("resnet18", "a torchvision model name, timm:NAME, or module:callable of your own")
    backbone_args: Arguments = identity({}, "its keyword arguments; dropped where --model.backbone is another")
    init_from: str | None = identity(
        None, "initial weights: a safetensors file, local or s3://; of a run's checkpoint, or an exported state_dict"
    )
    init_partial: bool = identity(False, "let parts of the backbone that init_from lacks start anew, as heads do")
    sharing: Sharing = identity(Sharing(), "what tasks share")
    pooling: Literal["backbone", "attention"] = identity(
        "backbone", "heads read the backbone's features | each pools the last feature map by its own attention"
    )
    head_hidden: int = identity(0, "hidden units of each head; 0 is a linear head", ge=0)
    dropout: float = identity(0.0, "dropout before each head", ge=0, lt=1)
    batch_norm: Literal["groups", "sync", "local", "frozen"] = identity(
        "groups",
        "statistics over fixed groups of lanes | all workers (GPU) | each worker's own batch | stored ones only",
    )
    batch_norm_groups: int = identity(2, "groups: how many; the worker count must divide it", ge=1)

    @model_validator(mode="after")
    def _fits_policy(self) -> Self:
        if self.batch_norm != "groups":
            refuse_unread(self, ("batch_norm_groups",), f"batch_norm = {self.batch_norm}")
        return self
