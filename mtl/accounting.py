"""What speed comes to: the share of what the device could compute, and money."""

import copy
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, final

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mtl.config import Config
from mtl.errors import MtlError
from mtl.goodput import Account
from mtl.precision import HALF

PEAKS: dict[str, dict[str, float]] = {
    "B200": {"half": 2250e12, "tf32": 1100e12, "fp32": 75e12},  # 4.5 and 2.2 PFLOPS; NVIDIA Blackwell, HGX B200
    "H200 NVL": {"half": 835.5e12, "tf32": 417.5e12, "fp32": 60e12},  # 1,671 and 835; NVIDIA H200
    "H200": {"half": 989.5e12, "tf32": 494.5e12, "fp32": 67e12},  # 1,979 and 989; NVIDIA H200, SXM
    "H100 NVL": {"half": 835.5e12, "tf32": 417.5e12, "fp32": 60e12},  # 1,671 and 835; NVIDIA H100
    "H100 PCIe": {"half": 756.5e12, "tf32": 378e12, "fp32": 51e12},  # 1,513 and 756; NVIDIA H100
    "H100": {"half": 989.5e12, "tf32": 494.5e12, "fp32": 67e12},  # 1,979 and 989; NVIDIA H100, SXM
    "A100": {"half": 312e12, "tf32": 156e12, "fp32": 19.5e12},  # printed so; NVIDIA A100, PCIe and SXM alike
    "L40S": {"half": 362.05e12, "tf32": 183e12, "fp32": 91.6e12},  # printed so; NVIDIA L40S
    "L4": {"half": 121e12, "tf32": 60e12, "fp32": 30.3e12},  # 242 and 120; NVIDIA L4
    "A10G": {"half": 70e12, "tf32": 35e12, "fp32": 35e12},  # printed so; NVIDIA A10G, AWS's, which is no A10
    "V100 PCIE": {"fp16": 112e12, "fp32": 14e12},  # printed so; NVIDIA V100
    "V100": {"fp16": 125e12, "fp32": 15.7e12},  # printed so; NVIDIA V100, SXM2
    "T4": {"fp16": 65e12, "fp32": 8.1e12},  # printed so; NVIDIA T4
}
"""Dense FLOP/s of NVIDIA's GPUs, by a part of the name; the first that fits counts. `half` is fp16 and bf16 alike.

Each row names the data sheet, and TFLOPS that it prints with sparsity, which are twice the dense ones. fp32 is without
tensor cores, half and tf32 are with them; Volta and Turing know neither bf16 nor tf32.
"""

_SIDE, _TRIES = 512, 5


@final
@dataclass(frozen=True)
class Scale:
    """What images/s are measured against.

    Attributes:
        flops_per_image: of a forward and a backward on a full image, multiplications and additions; None where they can
            not be counted.
        peak_flops: FLOP/s of one worker's device, None where it is not known.
        measured: whether the peak is what this processor reached in a product of two matrices.
        price_per_hour: of a worker.
        fp32_flops: what it reached in fp32, where the peak is measured and of half precision.
    """

    flops_per_image: float | None
    peak_flops: float | None
    measured: bool
    price_per_hour: float | None
    fp32_flops: float | None = None

    def row(self, images_per_s: float, workers: int, images_per_epoch: int, area: float = 1.0) -> dict[str, float]:
        """What is known at this speed: mfu, the share of the peak, and cost_per_epoch.

        Args:
            area: of these images, over that of full ones.
        """
        found: dict[str, float] = {}
        if self.flops_per_image is not None and self.peak_flops is not None:
            found["mfu"] = images_per_s * self.flops_per_image * area / (self.peak_flops * workers)
        if self.price_per_hour is not None and images_per_s > 0:
            found["cost_per_epoch"] = self.price_per_hour * workers * images_per_epoch / images_per_s / 3600
        return found

    def values(self) -> dict[str, Any]:
        """For the account of an attempt, which `totals` reads."""
        return asdict(self)

    def describe(self) -> str | None:
        """One line, None where nothing is known."""
        if self.flops_per_image is None:
            return None
        line = f"an image takes {self.flops_per_image / 1e9:.3g} GFLOP, forward and backward"
        if self.peak_flops is None:
            return f"{line}; this device's peak is not known, so MFU is not shown"
        whose = "this worker's processor reaches" if self.measured else "this device's data sheet has"
        line = f"{line}; {whose} {self.peak_flops / 1e9:,.0f} GFLOP/s, which MFU is a share of"
        if self.fp32_flops is None:
            return line
        slower = ": --precision fp32 is faster here" if self.fp32_flops > self.peak_flops else ""
        return f"{line}, and {self.fp32_flops / 1e9:,.0f} in fp32{slower}"


def scale(model: nn.Module, config: Config, device: torch.device) -> Scale:
    """What a worker's images/s are measured against. Takes a moment: the model is traced, and a CPU's peak measured."""
    flops, price = flops_per_image(model, config.augment.size_px), config.resources.price_per_hour
    if device.type == "cuda":
        return Scale(flops, peak(torch.cuda.get_device_name(device), config.precision), False, price)
    half = HALF.get(config.precision)
    single = measured_peak(torch.float32)
    if half is None:
        return Scale(flops, single, True, price)
    return Scale(flops, measured_peak(half), True, price, fp32_flops=single)


def totals(
    accounts: Sequence[Account], *, useful_s: float, images: int, epochs: float, area: float = 1.0
) -> dict[str, float]:
    """What a whole run comes to: images_per_s and mfu over its useful time, cost and cost_per_epoch over all its time.

    Args:
        accounts: of its attempts, which the workers and the price may differ between.
        images: trained on in useful_s.
        epochs: that those are.
        area: of those images, over that of full ones.
    """
    if not accounts or useful_s <= 0 or epochs <= 0 or not all("scale" in account for account in accounts):
        return {}  # nothing was trained, or an earlier version of mtl did a part of it
    last, rate = accounts[-1], images / useful_s
    found = {"images_per_s": rate}
    if "mfu" in (row := Scale(**last["scale"]).row(rate, last["workers"], images, area)):
        found["mfu"] = row["mfu"]
    prices = [account["scale"]["price_per_hour"] for account in accounts]
    if all(price is not None for price in prices):
        hours = [_seconds(account) / 3600 * account["workers"] for account in accounts]
        found["cost"] = sum(price * spent for price, spent in zip(prices, hours, strict=True))
        found["cost_per_epoch"] = found["cost"] / epochs
    return found


def _seconds(account: Account) -> float:
    began, until = (datetime.fromisoformat(account[name]).timestamp() for name in ("began", "until"))
    return until - began


def flops_per_image(model: nn.Module, size_px: int) -> float | None:
    """FLOP of an image's forward and backward in convolutions and products; None where the model can not be traced.

    Counted by torch on tensors without data, of a copy; a multiplication and an addition are two.
    """
    images = torch.empty(2, 3, size_px, size_px, device="meta", dtype=next(model.parameters()).dtype)
    counter = FlopCounterMode(display=False)
    try:
        traced = copy.deepcopy(model).to("meta").eval()  # some norms can not be traced in training
        with counter:
            outputs: Any = traced(images)
            torch.cat([output.reshape(-1) for output in outputs.values()]).sum().backward()
    except (RuntimeError, NotImplementedError, ValueError, TypeError, MtlError):
        return None  # a model of the user's may look at values, which such tensors have not
    return counter.get_total_flops() / len(images)


def peak(name: str, precision: str) -> float | None:
    """FLOP/s of the GPU called `name`, None where it is not known, or does not know the precision."""
    fitting = [values for part, values in PEAKS.items() if f" {part} " in f" {name.replace('-', ' ')} "]
    if not fitting:
        return None
    return fitting[0].get(precision, fitting[0].get("half") if precision in ("bf16", "fp16") else None)


def measured_peak(dtype: torch.dtype) -> float:
    """FLOP/s that this process reaches on the CPU, with its threads, in a product of two matrices of these numbers."""
    matrix = torch.ones(_SIDE, _SIDE, dtype=dtype)
    best_s = float("inf")
    for _ in range(_TRIES):
        began = time.perf_counter()
        torch.mm(matrix, matrix)
        best_s = min(best_s, time.perf_counter() - began)
    return 2 * _SIDE**3 / best_s
