"""What speed comes to: FLOPs as one counts them by hand, peaks by name, money."""

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtl.accounting import PEAKS, Scale, flops_per_image, measured_peak, peak, scale, totals
from mtl.config import Augment, Config, Task

CPU = torch.device("cpu")
TASKS = {"a": Task(kind="multiclass", label="a")}


class Tiny(nn.Module):
    """A convolution of 3 to 4 channels and a head; `reads` looks at values, as meta tensors do not allow."""

    def __init__(self, reads: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3, padding=1, bias=False), flat=nn.Flatten()))
        self.head = nn.Linear(4 * 8 * 8, 5)
        self.reads = reads

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.body(x)
        if self.reads and float(features.sum()) > 1e9:
            features = features * 0
        return {"a": self.head(features)}


def test_flops_are_those_counted_by_hand() -> None:
    convolution, head = 2 * 8 * 8 * 4 * 3 * 9, 2 * 4 * 8 * 8 * 5
    # Backward: the convolution has gradients of its weights alone, as images need none; the head of both.
    assert flops_per_image(Tiny(), 8) == 2 * convolution + 3 * head


def test_a_model_that_can_not_be_traced_has_no_count_and_is_left_alone() -> None:
    model = Tiny(reads=True)
    assert flops_per_image(model, 8) is None
    assert all(parameter.grad is None and parameter.device.type == "cpu" for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "precision", "expected"),
    [
        ("NVIDIA B200", "tf32", 1100e12),
        ("NVIDIA GB200", "tf32", None),  # another card, of more power
        ("NVIDIA H200", "bf16", 989.5e12),
        ("NVIDIA H200 NVL", "bf16", 835.5e12),
        ("NVIDIA H100 80GB HBM3", "fp16", 989.5e12),
        ("NVIDIA H100 NVL", "fp32", 60e12),
        ("NVIDIA H100 PCIe", "bf16", 756.5e12),
        ("NVIDIA A100-SXM4-80GB", "tf32", 156e12),
        ("NVIDIA L4", "fp32", 30.3e12),
        ("NVIDIA L40S", "bf16", 362.05e12),
        ("NVIDIA A10G", "fp32", 35e12),
        ("NVIDIA A10", "fp32", None),
        ("Tesla V100-SXM2-16GB", "fp16", 125e12),
        ("Tesla V100-PCIE-16GB", "fp16", 112e12),
        ("Tesla V100-SXM2-16GB", "bf16", None),
        ("Tesla T4", "fp16", 65e12),
        ("Tesla T4", "tf32", None),
        ("NVIDIA GeForce RTX 2060", "fp32", None),
    ],
)
def test_peaks_are_found_by_name(name: str, precision: str, expected: float | None) -> None:
    assert peak(name, precision) == expected


def test_less_exact_is_faster_on_every_device() -> None:
    for values in PEAKS.values():
        assert list(values.values()) == sorted(values.values(), reverse=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_measured_peak_is_a_processors(dtype: torch.dtype) -> None:
    assert 1e8 < measured_peak(dtype) < 1e14


def test_a_processors_peak_is_that_of_the_runs_precision() -> None:
    config = Config(recipe="r", name="r", data="d", tasks=TASKS, augment=Augment(size_px=8))
    found = {name: scale(Tiny(), config.model_copy(update={"precision": name}), CPU) for name in ("fp32", "bf16")}
    assert found["fp32"].fp32_flops is None
    half = found["bf16"]
    assert half.peak_flops is not None
    assert half.fp32_flops is not None
    # Both were measured a moment ago, on cores that others may share.
    assert 0.1 < half.fp32_flops / (found["fp32"].peak_flops or 0) < 10


@pytest.mark.parametrize(
    ("fp32", "said"), [(1e9, "and 1 in fp32"), (3e9, "and 3 in fp32: --precision fp32 is faster here")]
)
def test_half_precision_that_is_slower_is_said(fp32: float, said: str) -> None:
    line = Scale(2e9, 2e9, True, None, fp32_flops=fp32).describe()
    assert line is not None
    assert line.endswith(said)


def test_rows_say_what_is_known() -> None:
    whole = Scale(flops_per_image=2e9, peak_flops=1e12, measured=False, price_per_hour=3.6)
    assert whole.row(100, workers=2, images_per_epoch=1000) == {
        "mfu": pytest.approx(0.1),
        "cost_per_epoch": pytest.approx(2 * 10 * 0.001),
    }
    assert Scale(None, 1e12, False, None).row(100, 2, 1000) == {}
    assert Scale(2e9, None, False, None).row(100, 2, 1000) == {}


def test_totals_are_of_all_attempts() -> None:
    def account(began: str, until: str, workers: int, price: float | None) -> dict[str, Any]:
        return {"began": f"2026-01-01T{began}+00:00", "until": f"2026-01-01T{until}+00:00"} | {
            "workers": workers,
            "scale": Scale(2e9, 1e12, True, price).values(),
        }

    first, second = account("00:00:00", "01:00:00", 4, 2.0), account("02:00:00", "02:30:00", 2, 1.0)
    found = totals([first, second], useful_s=1000.0, images=50_000, epochs=5)
    assert found == {
        "images_per_s": 50,
        "mfu": pytest.approx(50 * 2e9 / 2e12),
        "cost": pytest.approx(4 * 2 + 0.5 * 2),
        "cost_per_epoch": pytest.approx(9 / 5),
    }
    assert "cost" not in totals([account("00:00:00", "01:00:00", 4, None), second], useful_s=1.0, images=1, epochs=1)
    assert totals([], useful_s=0.0, images=0, epochs=0) == {}


def test_counting_leaves_no_trace_in_torch() -> None:
    model, state = Tiny(), torch.get_rng_state()
    flops_per_image(model, 8)
    assert torch.equal(torch.get_rng_state(), state)
