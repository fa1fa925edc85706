"""How an image becomes a view of SIZE x SIZE pixels: as torchvision documents it, and as ours does it."""

import math
import warnings
from typing import Any, final

import cv2
import numpy as np
import numpy.typing as npt

from benchmarks.peers import SIZE
from mtl.config import Augment
from mtl.data.transforms import Draws, TrainView

CROP_SCALE, CROP_RATIO = (0.08, 1.0), (3 / 4, 4 / 3)

AUGMENT = Augment(size_px=SIZE, crop="resized", crop_scale=CROP_SCALE, crop_ratio=CROP_RATIO, flip=0.5, brightness=0.0)
_WIDTH = 64  # random numbers a sample, at least as many as the view asks for

cv2.setNumThreads(1)


@final
class Ours:
    """Our view of encoded images, uint8 [SIZE, SIZE, 3]: whatever mtl.data.transforms does, in a peer's own worker."""

    def __init__(self) -> None:
        self._view = TrainView(AUGMENT, seed=0)
        self._random: np.random.Generator | None = None

    def __call__(self, data: bytes | memoryview) -> npt.NDArray[np.uint8]:
        """Decode, crop, resize and perhaps mirror `data`."""
        if self._random is None:  # not before the fork: every worker draws numbers of its own
            self._random = np.random.default_rng()
        numbers = self._random.random((1, _WIDTH))
        draws = Draws(numbers, flip=numbers[:, -1] < AUGMENT.flip, colour=np.ones((1, 3), np.float32))
        out = np.empty((1, SIZE, SIZE, 3), np.uint8)
        if refused := self._view.render([memoryview(data)], out, draws, [0]):
            raise ValueError(refused[0])
        self._view.finish(out, draws)
        return out[0]


def crop_box(height: int, width: int, random: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random part, for peers that crop by a library without RandomResizedCrop."""
    for _ in range(10):
        area = height * width * random.uniform(*CROP_SCALE)
        ratio = math.exp(random.uniform(math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(random.integers(height - h + 1)), int(random.integers(width - w + 1)), h, w
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def opencv_view(data: bytes | memoryview, random: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Decode, crop, resize and perhaps mirror `data` by OpenCV, uint8 [SIZE, SIZE, 3]."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    top, left, height, width = crop_box(*image.shape[:2], random)
    view = cv2.resize(image[top : top + height, left : left + width], (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    return cv2.flip(view, 1) if random.random() < 0.5 else view


def pillow_transform() -> Any:
    """The transform of torchvision's classification reference, for Pillow images, up to a uint8 tensor [3, H, W]."""
    from torchvision import transforms

    return transforms.Compose(
        [transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip(), transforms.PILToTensor()]
    )


def tensor_transform() -> Any:
    """The same for uint8 tensors by transforms.v2, which torchvision's "Performance considerations" recommend.

    https://docs.pytorch.org/vision/stable/transforms.html
    """
    from torchvision.transforms import v2

    return v2.Compose([v2.RandomResizedCrop(SIZE, antialias=True), v2.RandomHorizontalFlip()])


@final
class Tensors:
    """torchvision's view of encoded images or of files, a uint8 tensor [3, SIZE, SIZE]; needs less CPU than Pillow's.

    Decoded by torchcodec, as https://docs.pytorch.org/vision/0.29/io.html asks; by torchvision.io where that is absent.
    """

    def __init__(self) -> None:
        self._transform = tensor_transform()

    def __call__(self, source: bytes | str) -> Any:
        """Decode, crop, resize and perhaps mirror `source`."""
        return self._transform(_decode(source))


def _decode(source: bytes | str) -> Any:
    try:
        from torchcodec.decoders import decode_image
    except ImportError:
        import torch
        from torchvision.io import decode_image

        warnings.filterwarnings("ignore", "The image decoding and encoding capabilities")
        if isinstance(source, bytes):
            source = torch.frombuffer(bytearray(source), dtype=torch.uint8)
    return decode_image(source, mode="RGB")
