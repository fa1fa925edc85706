"""Encoded images to RGB pixels. The hot path of training: plain JPEGs meet libjpeg-turbo and nothing else."""

import io
import struct
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageOps
import simplejpeg

Pixels: TypeAlias = npt.NDArray[np.uint8]
Encoded: TypeAlias = bytes | memoryview

MAX_PIXELS = 50_000_000
"""The largest image decoded unless the caller says otherwise: 150 MB of pixels."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_SOI = b"\xff\xd8"
_ORIENTATION = 0x0112
# libjpeg's words for data that it made up; its other complaints are about unusual headers, for Pillow to judge.
_DAMAGE = ("Premature end", "Corrupt JPEG data")


class BadImage(ValueError):
    """Bytes that are no image, a damaged one, or one too large to decode. The text is the reason."""


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """Width and height in pixels as `decode` returns them (EXIF rotation applied), and the format, such as "PNG"."""

    width: int
    height: int
    format: str


def header(data: Encoded) -> ImageHeader:
    """What `data` claims to be, without decoding pixels.

    Raises:
        BadImage: it is no image, or its header is damaged.
    """
    view = memoryview(data).cast("B")
    if bytes(view[:2]) == _SOI:
        jpeg = _jpeg_header(view)
        if jpeg is not None:
            height, width, orientation, _ = jpeg
            if orientation >= 5:
                height, width = width, height
            return ImageHeader(width, height, "JPEG")
    try:
        with _open(view, MAX_PIXELS) as image:
            return ImageHeader(*_upright_size(image), image.format or "")
    except Exception as error:
        raise _bad(error) from error


def decode(data: Encoded, *, max_pixels: int = MAX_PIXELS) -> Pixels:
    """The first frame of `data` as uint8 [H, W, 3] RGB, EXIF rotation applied, alpha dropped, 16 bits cut to 8.

    Raises:
        BadImage: damaged or truncated data, or more than `max_pixels` (refused before anything is decoded).
    """
    view = memoryview(data).cast("B")
    size = _plain_jpeg(view, max_pixels)
    if size is not None:
        pixels = _turbo(view, None)
        if pixels is not None:
            return pixels
    try:
        with _open(view, max_pixels) as image:
            return _rgb(image)
    except Exception as error:
        raise _bad(error) from error


def decode_into(data: Encoded, out: Pixels, *, max_pixels: int = MAX_PIXELS) -> bool:
    """Decode into `out`, uint8 [H, W, 3] and C-contiguous, if the image has exactly that size; else return False.

    `out` is undefined after an error.

    Raises:
        BadImage: as for `decode`; an image of another size is not examined further than its header.
    """
    view = memoryview(data).cast("B")
    size = _plain_jpeg(view, max_pixels)
    if size is not None:
        if size != out.shape[:2]:
            return False
        assert out.flags.c_contiguous
        if _turbo(view, out) is not None:
            return True
    try:
        with _open(view, max_pixels) as image:
            if _upright_size(image) != out.shape[1::-1]:
                return False
            np.copyto(out, _rgb(image))
            return True
    except Exception as error:
        raise _bad(error) from error


def _plain_jpeg(view: memoryview, max_pixels: int) -> tuple[int, int] | None:
    """Height and width of a JPEG that needs no conversion; None for anything else."""
    if bytes(view[:2]) != _SOI:
        return None
    jpeg = _jpeg_header(view)
    if jpeg is None:
        return None
    height, width, orientation, colours = jpeg
    _refuse_bomb(height, width, max_pixels)
    return (height, width) if orientation == 1 and colours not in ("CMYK", "YCCK") else None


def _jpeg_header(view: memoryview) -> tuple[int, int, int, str] | None:
    """Stored height and width, EXIF orientation and colour space; None if libjpeg-turbo can not tell."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(view)
    except ValueError:
        return None
    return int(height), int(width), _jpeg_orientation(view), colours


def _turbo(view: memoryview, out: Pixels | None) -> Pixels | None:
    """Pixels by libjpeg-turbo, in `out` if given; None if it complains about something that is not damage."""
    try:
        return simplejpeg.decode_jpeg(view, "RGB", buffer=out)
    except ValueError as error:
        if str(error).startswith(_DAMAGE):
            raise BadImage(str(error)) from error
        return None


def _jpeg_orientation(view: memoryview) -> int:
    """The EXIF orientation, 1 to 8; 1 if there is none. EXIF precedes the frame header, so the search ends there."""
    at, end = 2, len(view) - 10
    while at < end and view[at] == 0xFF:
        marker = view[at + 1]
        if marker in (0xC0, 0xC1, 0xC2, 0xDA):
            return 1
        if marker == 0xFF:  # padding
            at += 1
            continue
        length = view[at + 2] << 8 | view[at + 3]
        if marker == 0xE1 and bytes(view[at + 4 : at + 10]) == b"Exif\0\0":
            return _exif_orientation(view[at + 10 : at + 2 + length])
        at += 2 + length
    return 1


def _exif_orientation(tiff: memoryview) -> int:
    order = "<" if bytes(tiff[:2]) == b"II" else ">"
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, start)
        for at in range(start + 2, start + 2 + 12 * entries, 12):
            tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, at)
            if tag == _ORIENTATION:
                return value if 1 <= value <= 8 else 1
    except struct.error:  # cut short: no orientation can be read, which is no fault of the pixels
        pass
    return 1


def _open(view: memoryview, max_pixels: int) -> PIL.Image.Image:
    image = PIL.Image.open(io.BytesIO(view), formats=FORMATS)
    _refuse_bomb(image.height, image.width, max_pixels)
    return image


def _rgb(image: PIL.Image.Image) -> Pixels:
    if _has_exif(image):
        PIL.ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):  # 16-bit gray, which Pillow would clip instead of scaling
        gray = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def _upright_size(image: PIL.Image.Image) -> tuple[int, int]:
    """Width and height after EXIF rotation."""
    turned = _has_exif(image) and image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
    return (image.height, image.width) if turned else (image.width, image.height)


def _has_exif(image: PIL.Image.Image) -> bool:
    """Whether EXIF precedes the pixels. To look for one behind them, Pillow would decode the whole of a PNG."""
    return "exif" in image.info


def _refuse_bomb(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise BadImage(f"{width} x {height} is more than {max_pixels:,} pixels")


def _bad(error: Exception) -> BadImage:
    """Pillow lets any exception of its decoders through on damaged data, so all of them mean the same here."""
    return error if isinstance(error, BadImage) else BadImage(f"{type(error).__name__}: {error}")
