"""Encoded images to RGB pixels. The hot path of training: plain JPEGs meet libjpeg-turbo and nothing else."""

import io
import struct
from dataclasses import dataclass
from typing import TypeAlias

import cv2
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
# By EXIF orientation, after a transposition from 5 on: about the vertical axis 1, the horizontal one 0, both -1.
_FLIPS = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}
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


@dataclass(frozen=True, slots=True)
class Found:
    """What a header says: upright height and width, and the EXIF orientation, 1 to 8, of a JPEG for libjpeg-turbo.

    Orientation 0 stands for everything that needs Pillow: other formats, CMYK.
    """

    height: int
    width: int
    orientation: int


def header(data: Encoded) -> ImageHeader:
    """What `data` claims to be, without decoding pixels.

    Raises:
        BadImage: it is no image, or its header is damaged.
    """
    view = memoryview(data).cast("B")
    jpeg = _jpeg(view)
    if jpeg is not None:
        return ImageHeader(jpeg.width, jpeg.height, "JPEG")
    try:
        with _open(view, MAX_PIXELS) as image:
            return ImageHeader(*_upright_size(image), image.format or "")
    except Exception as error:
        raise _bad(error) from error


def examine(data: Encoded, *, max_pixels: int = MAX_PIXELS) -> Found:
    """Size and kind of `data`, from its header alone.

    Raises:
        BadImage: it is no image, its header is damaged, or it has more than `max_pixels`.
    """
    view = memoryview(data).cast("B")
    jpeg = _jpeg(view)
    if jpeg is not None:
        _refuse_bomb(jpeg.height, jpeg.width, max_pixels)
        return jpeg
    try:
        with _open(view, max_pixels) as image:
            width, height = _upright_size(image)
            return Found(height, width, 0)
    except Exception as error:
        raise _bad(error) from error


def decode(
    data: Encoded, found: Found | None = None, *, fast: bool = False, shrink: int = 1, max_pixels: int = MAX_PIXELS
) -> Pixels:
    """The first frame of `data` as uint8 [H, W, 3] RGB, EXIF rotation applied, alpha dropped, 16 bits cut to 8.

    Args:
        found: what `examine` said of the same data, if it was asked.
        fast: a sixth cheaper for JPEG, and 1.3 levels of 255 away from the exact pixels on average: libjpeg-turbo's
            fast inverse DCT, and chroma that is repeated instead of interpolated.
        shrink: 1, 2, 4 or 8: a JPEG may come as [ceil(H / shrink), ceil(W / shrink), 3], the means that its DCT holds.
            Other formats come in full size.

    Raises:
        BadImage: damaged or truncated data, or more than `max_pixels` (refused before anything is decoded).
    """
    view = memoryview(data).cast("B")
    found = found or examine(view, max_pixels=max_pixels)
    if found.orientation:
        pixels = _turbo(view, found, fast=fast, shrink=shrink)
        if pixels is not None:
            return _upright(pixels, found.orientation)
    try:
        with _open(view, max_pixels) as image:
            return _rgb(image)
    except Exception as error:
        raise _bad(error) from error


def decode_into(data: Encoded, out: Pixels, *, fast: bool = False, max_pixels: int = MAX_PIXELS) -> bool:
    """Decode into `out`, uint8 [H, W, 3] and C-contiguous, if the image has exactly that size; else return False.

    `out` is undefined after an error.

    Raises:
        BadImage: as for `decode`; an image of another size is not examined further than its header.
    """
    view = memoryview(data).cast("B")
    found = examine(view, max_pixels=max_pixels)
    if (found.height, found.width) != out.shape[:2]:
        return False
    assert out.flags.c_contiguous
    if found.orientation != 1 or _turbo(view, found, fast=fast, out=out) is None:
        np.copyto(out, decode(view, found, fast=fast, max_pixels=max_pixels))
    return True


def _jpeg(view: memoryview) -> Found | None:
    """A JPEG's header; None if it is none, if libjpeg-turbo can not tell, or if Pillow has to convert its colours."""
    if bytes(view[:2]) != _SOI:
        return None
    try:
        stored_height, stored_width, colours, _ = simplejpeg.decode_jpeg_header(view)
    except ValueError:
        return None
    if colours in ("CMYK", "YCCK"):
        return None
    height, width, orientation = int(stored_height), int(stored_width), _jpeg_orientation(view)
    return Found(width, height, orientation) if orientation >= 5 else Found(height, width, orientation)


def _turbo(view: memoryview, found: Found, *, fast: bool, shrink: int = 1, out: Pixels | None = None) -> Pixels | None:
    """Pixels as stored, by libjpeg-turbo, in `out` if given; None if it complains of what is no damage."""
    height, width = (found.width, found.height) if found.orientation >= 5 else (found.height, found.width)
    try:
        return simplejpeg.decode_jpeg(
            view,
            "RGB",
            fastdct=fast,
            fastupsample=fast,
            min_height=-(-height // shrink),
            min_width=-(-width // shrink),
            buffer=out,
        )
    except ValueError as error:
        if str(error).startswith(_DAMAGE):
            raise BadImage(str(error)) from error
        return None


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """`pixels` turned and mirrored as EXIF says they are to be shown."""
    if orientation >= 5:
        pixels = cv2.transpose(pixels)  # pyright: ignore[reportAssignmentType]
    flip = _FLIPS.get(orientation)
    return pixels if flip is None else cv2.flip(pixels, flip)  # pyright: ignore[reportReturnType]


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
    # Pillow's WebP reader reserves memory for the whole canvas when it opens a file.
    _refuse_bomb(*_webp_canvas(view), max_pixels)
    image = PIL.Image.open(io.BytesIO(view), formats=FORMATS)
    _refuse_bomb(image.height, image.width, max_pixels)
    return image


def _webp_canvas(view: memoryview) -> tuple[int, int]:
    """Height and width that a WebP's first chunk states (RFC 9649); zeros if it states none."""
    if bytes(view[:4]) != b"RIFF" or bytes(view[8:12]) != b"WEBP" or len(view) < 30:
        return 0, 0
    match bytes(view[12:16]):
        case b"VP8X":
            return 1 + int.from_bytes(view[27:30], "little"), 1 + int.from_bytes(view[24:27], "little")
        case b"VP8L":
            bits = int.from_bytes(view[21:25], "little")
            return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
        case b"VP8 ":
            return int.from_bytes(view[28:30], "little") & 0x3FFF, int.from_bytes(view[26:28], "little") & 0x3FFF
        case _:
            return 0, 0


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
