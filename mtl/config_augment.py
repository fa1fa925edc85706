"""The section of the configuration that says what becomes of pixels."""

from typing import Literal, Self

from pydantic import model_validator

from mtl.errors import ConfigError
from mtl.schema import Section, identity, refuse_unread, resumable

_OF_CROPS = {"none": (), "resized": ("crop_scale", "crop_ratio"), "padded": ("crop_pad_px",)}


class Augment(Section):
    """Pixels in: training augmentation and the evaluation view. Standardisation is the data set's own."""

    size_px: int = identity(224, "side of the square image that the model sees", ge=8)
    grow_from_px: int | None = identity(
        None, "training begins with images shrunk to this side, which grow to size_px over four fifths of it", ge=8
    )
    crop: Literal["none", "resized", "padded"] = identity(
        "resized", "training view: whole image resized | random part resized | random shift within a padded border"
    )
    crop_scale: tuple[float, float] = identity((0.35, 1.0), "resized: share of the area that is kept")
    crop_ratio: tuple[float, float] = identity((0.75, 4 / 3), "resized: aspect ratio")
    crop_pad_px: int = identity(4, "padded: width of the border, in pixels of the final size", ge=0)
    flip: float = identity(0.5, "probability of a horizontal mirror", ge=0, le=1)
    brightness: float = identity(0.2, "brightness is multiplied by a factor within 1 +- this", ge=0, le=1)
    contrast: float = identity(0.0, "contrast is multiplied by a factor within 1 +- this", ge=0, le=1)
    saturation: float = identity(0.0, "saturation is multiplied by a factor within 1 +- this", ge=0, le=1)
    erase: float = identity(0.0, "probability that a random rectangle is replaced by the mean colour", ge=0, le=1)
    mixup: float = identity(0.0, "two samples are averaged, labels too, at a share of Beta(this, this)", ge=0, le=1)
    cutmix: float = identity(
        0.0, "a square of a sample is another's, its share of the labels too; area of Beta(this, this)", ge=0, le=1
    )
    pixels: Literal["fast", "exact"] = identity(
        "fast", "JPEG shrunk while it is decoded, bilinear resizing; or full decoding and area means: 1.6 times the CPU"
    )
    eval_resize_px: int = resumable(256, "evaluation: short side before the centre crop to eval_size_px", ge=8)
    eval_size_px: int | None = resumable(None, "evaluation: side of that crop; None is size_px", ge=8)

    @property
    def evaluated_px(self) -> int:
        """Side of the images that the model sees in evaluation."""
        return self.eval_size_px or self.size_px

    @property
    def other_sizes(self) -> dict[str, int | None]:
        """Sides of images that the model may see besides size_px, by field."""
        return {f"augment.{name}": getattr(self, name) for name in ("eval_size_px", "grow_from_px")}

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        scale, ratio = self.crop_scale, self.crop_ratio
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ConfigError(
                "augment.crop_scale is no range.", got=scale, expected="low and high, 0 < low <= high <= 1"
            )
        if not 0 < ratio[0] <= ratio[1]:
            raise ConfigError("augment.crop_ratio is no range.", got=ratio, expected="low and high, 0 < low <= high")
        for crop, options in _OF_CROPS.items():
            if crop != self.crop:
                refuse_unread(self, options, f"crop = {self.crop}")
        if self.grow_from_px is not None and self.grow_from_px >= self.size_px:
            raise ConfigError(
                "augment.grow_from_px leaves nothing to grow.",
                got=self.grow_from_px,
                expected=f"less than augment.size_px = {self.size_px}",
            )
        if self.eval_resize_px < self.evaluated_px:
            side = "size_px" if self.eval_size_px is None else "eval_size_px"
            raise ConfigError(
                "augment.eval_resize_px is smaller than what the model sees.",
                got=self.eval_resize_px,
                expected=f"at least augment.{side} = {self.evaluated_px}",
                do=f"set both: --augment.{side.replace('_', '-')} and --augment.eval-resize-px",
            )
        return self
