"""What the model sees of a batch, part by part, and the losses of a part: mixed samples count for both their labels."""

import time
from typing import final

import numpy as np
import torch
from torch import Tensor

from mtl.data.batch import Batch
from mtl.data.colour import Standardise
from mtl.data.growth import shrunk
from mtl.data.strong import Strong, outside
from mtl.tasks import TaskSpec


@final
class Inputs:
    """A batch on its way to the device.

    Args:
        strong: augmentation beyond what the batch already has; None for none.
        side_px: of what the model sees, at most that of the batch's images; None as they are.

    Attributes:
        copied_s: host time of copies of images to the device, so far.
    """

    def __init__(
        self,
        batch: Batch,
        standardise: Standardise,
        strong: Strong | None,
        device: torch.device,
        side_px: int | None = None,
    ) -> None:
        self._pixels, self._colour = torch.from_numpy(batch.images), torch.from_numpy(batch.colour)
        self._labels = {name: torch.from_numpy(values).to(device) for name, values in batch.labels.items()}
        self._standardise, self._device, self.copied_s = standardise, device, 0.0
        self._side_px = side_px or batch.images.shape[1]
        self._erased = strong.boxes(batch.epoch, batch.positions) if strong else None
        self._blend = strong.blend(batch.step, batch.positions) if strong else None

    def images(self, part: slice) -> Tensor:
        """[n, 3, side, side] of the samples `part`."""
        return shrunk(self._full(part), self._side_px)

    def _full(self, part: slice) -> Tensor:
        x = self._view(part)
        if self._blend is None:
            return x
        share, box = self._blend.share[part], self._blend.box[part]
        average = np.where(box[:, 0] == box[:, 2], share, 1.0)
        weight = torch.from_numpy(average).to(x).view(-1, 1, 1, 1) * outside(box, x.shape[-1], x)
        return torch.lerp(self._view(torch.from_numpy(self._blend.partner[part])), x, weight)

    def _view(self, rows: slice | Tensor) -> Tensor:
        began = time.perf_counter()
        pixels, factors = self._pixels[rows].to(self._device), self._colour[rows].to(self._device)
        self.copied_s += time.perf_counter() - began
        x = self._standardise(pixels, factors)
        if self._erased is None:
            return x
        # Zero is the mean of the data set, as images are standardised.
        return x * outside(self._erased[rows.numpy() if isinstance(rows, Tensor) else rows], x.shape[-1], x)

    def losses(self, specs: list[TaskSpec], outputs: dict[str, Tensor], part: slice) -> Tensor:
        """Each task's sum of losses [K] over the samples `part`."""
        if self._blend is None:
            return torch.stack([spec.loss(outputs[spec.name], self._labels[spec.name][part]) for spec in specs])
        share = torch.from_numpy(self._blend.share[part]).to(self._device)
        partner = torch.from_numpy(self._blend.partner[part]).to(self._device)
        sums: list[Tensor] = []
        for spec in specs:
            output, labels = outputs[spec.name], self._labels[spec.name]
            sums.append(spec.loss(output, labels[part], share) + spec.loss(output, labels[partner], 1 - share))
        return torch.stack(sums)
