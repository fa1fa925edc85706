"""A picture of what the model sees: augmented training samples, each with its labels after augmentation."""

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from mtl.config import Config
from mtl.data.batch import OK, Batch
from mtl.data.colour import Standardise
from mtl.data.order import held_lanes
from mtl.local import solitary
from mtl.parts import build_loader, build_specs
from mtl.preflight import Plan
from mtl.tasks import Binary, Circular, Multiclass, Multilabel, Ordinal, Soft, TaskSpec

_COLUMNS, _ROWS, _SIDE_PX, _LINE_PX = 6, 4, 160, 13


def draw(config: Config, plan: Plan, path: Path) -> None:
    """Write a PNG of samples of the first step, as training would see them; of a mixture they also name their data set.

    They are taken at even distances, so that a mixture's are in proportion.
    """
    specs = build_specs(config, plan.manifest)
    with solitary() as runtime:
        loader = build_loader(config, specs, plan.sets, plan.order, range(1), runtime)
        batch = next(iter(loader))
        loader.close()
    there = np.flatnonzero(batch.status == OK)
    count = min(len(there), _COLUMNS * _ROWS)
    shown = there[np.arange(count) * len(there) // max(count, 1)]
    statistics = plan.manifest.statistics
    standardise = Standardise(statistics, config.augment, torch.device("cpu"), torch.float32)
    seen = standardise(torch.from_numpy(batch.images[shown]), torch.from_numpy(batch.colour[shown]))
    scale, shift = torch.tensor(statistics.std).view(3, 1, 1), torch.tensor(statistics.mean).view(3, 1, 1)
    pixels = ((seen * scale + shift) * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()

    sources = _sources(config, plan)
    cell = _SIDE_PX + _LINE_PX * (len(specs) + bool(sources)) + 6
    sheet = Image.new("RGB", (_COLUMNS * (_SIDE_PX + 6), math.ceil(len(shown) / _COLUMNS) * cell), "white")
    canvas, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for at, slot in enumerate(shown.tolist()):
        left, top = at % _COLUMNS * (_SIDE_PX + 6) + 3, at // _COLUMNS * cell + 3
        sheet.paste(Image.fromarray(pixels[at]).resize((_SIDE_PX, _SIDE_PX), Image.Resampling.NEAREST), (left, top))
        texts = [f"{spec.name}: {_caption(spec, batch, slot)}" for spec in specs]
        for row, text in enumerate(([sources[slot]] if sources else []) + texts):
            canvas.text((left, top + _SIDE_PX + row * _LINE_PX), text[:27], "black", font)
    sheet.save(path)


def _sources(config: Config, plan: Plan) -> list[str]:
    """The name of the data set in each slot of a mixture's batch, none where there is no mixture."""
    if not config.mixture:
        return []
    order, groups = plan.order, config.model.batch_norm_groups if config.model.batch_norm == "groups" else 1
    names = [its.manifest.name for its, part in zip(plan.sets, order.parts, strict=True) for _ in range(part.lanes)]
    per_lane = order.global_batch // order.lanes
    return [names[lane] for lane in held_lanes(order, 0, 1, groups).tolist() for _ in range(per_lane)]


def _caption(spec: TaskSpec, batch: Batch, slot: int) -> str:
    value = batch.labels[spec.name][slot]
    if not bool(spec.valid(torch.from_numpy(batch.labels[spec.name][slot : slot + 1]))):
        return "-"
    match spec:
        case Multiclass() | Ordinal():
            return spec.classes[int(value)]
        case Multilabel():
            marks = {1: "", -1: "?"}
            return " ".join(marks[v] + c for c, v in zip(spec.classes, value.tolist(), strict=True) if v) or "none"
        case Soft():
            at = int(value.argmax())
            return f"{spec.classes[at]} {value[at]:.0%}"
        case Binary():
            return "yes" if value else "no"
        case Circular():
            return f"{math.degrees(float(value)):.0f}°"
        case _:
            return " ".join(f"{number:g}" for number in np.atleast_1d(value))
