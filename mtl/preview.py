"""A picture of what the model sees: augmented training samples, each with its labels after augmentation."""

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from mtl.config import Config
from mtl.data.colour import Standardise
from mtl.data.loader import OK, Batch
from mtl.local import solitary
from mtl.parts import build_loader, build_specs
from mtl.preflight import Plan
from mtl.store import open_store
from mtl.tasks import Binary, Circular, Multiclass, TaskSpec

_COLUMNS, _ROWS, _SIDE_PX, _LINE_PX = 6, 4, 160, 13


def draw(config: Config, plan: Plan, path: Path) -> None:
    """Write a PNG of the first samples of the first epoch, as training would see them."""
    specs = build_specs(config, plan.manifest)
    with solitary() as runtime:
        loader = build_loader(config, specs, open_store(config.data), "train", plan.order, range(1), runtime)
        batch = next(iter(loader))
        loader.close()
    shown = np.flatnonzero(batch.status == OK)[: _COLUMNS * _ROWS]
    statistics = plan.manifest.statistics
    standardise = Standardise(statistics, config.augment, torch.device("cpu"), torch.float32)
    seen = standardise(torch.from_numpy(batch.images[shown]), torch.from_numpy(batch.colour[shown]))
    scale, shift = torch.tensor(statistics.std).view(3, 1, 1), torch.tensor(statistics.mean).view(3, 1, 1)
    pixels = ((seen * scale + shift) * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()

    cell = _SIDE_PX + _LINE_PX * len(specs) + 6
    sheet = Image.new("RGB", (_COLUMNS * (_SIDE_PX + 6), math.ceil(len(shown) / _COLUMNS) * cell), "white")
    canvas, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for at, slot in enumerate(shown.tolist()):
        left, top = at % _COLUMNS * (_SIDE_PX + 6) + 3, at // _COLUMNS * cell + 3
        sheet.paste(Image.fromarray(pixels[at]).resize((_SIDE_PX, _SIDE_PX), Image.Resampling.NEAREST), (left, top))
        for row, spec in enumerate(specs):
            text = f"{spec.name}: {_caption(spec, batch, slot)}"
            canvas.text((left, top + _SIDE_PX + row * _LINE_PX), text[:27], "black", font)
    sheet.save(path)


def _caption(spec: TaskSpec, batch: Batch, slot: int) -> str:
    value = batch.labels[spec.name][slot]
    if not bool(spec.valid(torch.tensor(value))):
        return "-"
    match spec:
        case Multiclass():
            return spec.classes[int(value)]
        case Binary():
            return "yes" if value else "no"
        case Circular():
            return f"{math.degrees(float(value)):.0f}°"
        case _:
            return f"{float(value):g}"
