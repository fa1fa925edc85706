"""fp32, TF32, bf16 and fp16 under one discipline: parameters, gradients, the optimizer and losses stay fp32.

Forwards run under torch's autocast; what leaves them is fp32 again before a loss is taken. fp16 has few exponents, so
losses are multiplied by a scale, which gradients are rid of before anything looks at them. A gradient that is not
finite skips the step in every precision: gradients are equal on all ranks, and so are the decision and the scale.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, final

import torch
from torch import Tensor

Name = Literal["fp32", "tf32", "bf16", "fp16"]

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""The precisions in which forwards are not fp32, and their numbers."""

_INITIAL, _SMALLEST, _LARGEST, _PATIENCE = 2.0**16, 1.0, 2.0**24, 2000  # as torch.amp.GradScaler begins and grows


@final
class Precision:
    """In what forwards compute, and the scale of losses.

    The scale halves with each step that is skipped and doubles after 2,000 good ones in a row (Micikevicius et al.
    2018, section 3.2). It is a number of the host: the step knows there already whether its gradient was finite.

    Args:
        name: tf32 is fp32 here; what makes it differ is `set_numerics`.
    """

    def __init__(self, name: Name, device: torch.device) -> None:
        self._half, self._device = HALF.get(name), device.type
        self._scales = name == "fp16"
        self._scale, self._good = _INITIAL if self._scales else 1.0, 0

    def apply(self, forward: Callable[[Tensor], dict[str, Tensor]], images: Tensor) -> dict[str, Tensor]:
        """`forward` of `images` in this precision; outputs are never of half precision."""
        with self._autocast():
            outputs = forward(images)
        return {name: output if self._half is None else output.float() for name, output in outputs.items()}

    def _autocast(self) -> AbstractContextManager[object]:
        return nullcontext() if self._half is None else torch.autocast(self._device, dtype=self._half)

    def scale(self) -> float:
        """By what losses are multiplied before their backward."""
        return self._scale

    def unscale(self, gradients: Sequence[Tensor]) -> None:
        """Divide what a backward left by the scale, in place."""
        if self._scales and gradients:
            torch._foreach_div_(list(gradients), self._scale)  # pyright: ignore

    def took(self) -> None:
        """A step was good."""
        self._good = (self._good + 1) % _PATIENCE if self._scales else 0
        if self._scales and self._good == 0:
            self._scale = min(2 * self._scale, _LARGEST)

    def skipped(self) -> bool:
        """A step was not finite. Returns whether the scale was to blame, as far as is known: it could still fall."""
        falls = self._scales and self._scale > _SMALLEST
        self._good = 0
        if falls:
            self._scale = max(self._scale / 2, _SMALLEST)
        return falls

    def state(self) -> dict[str, float | int]:
        """The scale and the good steps since it last changed, for JSON."""
        return {"scale": self._scale, "good": self._good}

    def restore(self, state: Mapping[str, float | int]) -> None:
        """Take back what `state` gave."""
        self._scale, self._good = float(state["scale"]), int(state["good"])


def set_numerics(name: Name, *, deterministic: bool) -> None:
    """Tell torch, for this whole process, how exact products of fp32 are, and whether reruns must be bit-identical.

    Not deterministic, cuDNN tries its algorithms and keeps the fastest for each shape.
    """
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS is refused; read at its start
    products = "tf32" if name == "tf32" else "ieee"
    torch.backends.cuda.matmul.fp32_precision = products
    torch.backends.cudnn.conv.fp32_precision = products  # pyright: ignore
    torch.backends.cudnn.rnn.fp32_precision = products  # pyright: ignore  # not used, but torch warns of a difference
