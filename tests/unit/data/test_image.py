"""Encoded images: every format to RGB, broken ones refused, bombs never decoded."""

import io
import struct
import zlib
from contextlib import suppress

import numpy as np
import PIL.Image
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl.data.image import BadImage, decode, decode_into, header

HEIGHT, WIDTH = 40, 56


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """A smooth uint8 [40, 56, 3], so that lossy formats stay close to it; no symmetry."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([4 * x, 5 * y, 255 - 2 * x - 2 * y], axis=2).clip(0, 255).astype(np.uint8)


def encoded(image: PIL.Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def exif(orientation: int, order: str = ">") -> bytes:
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return b"Exif\0\0" + mark + struct.pack(order + "IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def close(a: np.ndarray, b: np.ndarray, tolerance: float = 6) -> bool:
    return a.shape == b.shape and float(np.abs(a.astype(int) - b).mean()) < tolerance


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("JPEG", {"quality": 95}),
        ("JPEG", {"quality": 95, "progressive": True}),
        ("JPEG", {"quality": 95, "keep_rgb": True}),
        ("PNG", {}),
        ("WEBP", {"quality": 95}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("GIF", {}),
    ],
)
def test_every_format_decodes_to_the_picture(picture: np.ndarray, form: str, options: dict[str, object]) -> None:
    data = encoded(PIL.Image.fromarray(picture), form, **options)
    pixels = decode(data)
    assert pixels.dtype == np.uint8
    assert close(pixels, picture)
    assert (header(data).width, header(data).height, header(data).format) == (WIDTH, HEIGHT, form)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK", "PA"])
def test_every_mode_becomes_rgb(picture: np.ndarray, mode: str) -> None:
    image = PIL.Image.fromarray(picture).convert("P" if mode == "PA" else mode)
    options = {"transparency": b"\x10\x80\xff"} if mode == "PA" else {}
    data = encoded(image, "JPEG" if mode == "CMYK" else "PNG", **options)
    pixels = decode(data)
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    if mode in ("RGBA", "CMYK"):
        assert close(pixels, picture)
    if mode in ("L", "LA"):
        assert close(pixels[..., 0], np.asarray(PIL.Image.fromarray(picture).convert("L")), 1)


def test_gray_jpeg_has_three_equal_channels(picture: np.ndarray) -> None:
    pixels = decode(simplejpeg.encode_jpeg(picture[:, :, :1].copy(), colorspace="GRAY", colorsubsampling="Gray"))
    assert (pixels[..., 0] == pixels[..., 1]).all()
    assert (pixels[..., 0] == pixels[..., 2]).all()


def test_16_bit_gray_is_scaled(picture: np.ndarray) -> None:
    wide = picture[..., 0].astype(np.uint16) * 256 + 17
    assert (decode(encoded(PIL.Image.fromarray(wide), "PNG")) == picture[..., :1]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_rotation_is_applied(picture: np.ndarray, orientation: int, order: str) -> None:
    data = encoded(PIL.Image.fromarray(picture), "JPEG", quality=95, exif=exif(orientation, order))
    upright = {
        1: picture,
        2: picture[:, ::-1],
        3: picture[::-1, ::-1],
        4: picture[::-1],
        5: picture.transpose(1, 0, 2),
        6: np.rot90(picture, -1),
        7: picture[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(picture),
    }[orientation]
    assert close(decode(data), upright)
    assert (header(data).height, header(data).width) == upright.shape[:2]
    out = np.zeros(upright.shape, np.uint8)
    assert decode_into(data, out)
    assert close(out, upright)


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_exif_rotation_of_other_formats(picture: np.ndarray, form: str) -> None:
    data = encoded(PIL.Image.fromarray(picture), form, lossless=True, exif=exif(6))
    assert close(decode(data), np.rot90(picture, -1))
    assert (header(data).height, header(data).width) == (WIDTH, HEIGHT)


def test_damaged_exif_is_ignored(picture: np.ndarray) -> None:
    data = encoded(PIL.Image.fromarray(picture), "JPEG", quality=95, exif=exif(6)[:20])
    assert close(decode(data), picture)


def test_decode_into_fills_only_what_fits(picture: np.ndarray) -> None:
    for form in ("JPEG", "PNG"):
        data = encoded(PIL.Image.fromarray(picture), form)
        out = np.zeros_like(picture)
        assert decode_into(data, out)
        assert (out == decode(data)).all()
        other = np.full((HEIGHT, WIDTH + 1, 3), 7, np.uint8)
        assert not decode_into(data, other)
        assert (other == 7).all()


@pytest.mark.parametrize("kind", ["b", "B"])
def test_views_of_any_byte_type_are_accepted(picture: np.ndarray, kind: str) -> None:
    data = simplejpeg.encode_jpeg(picture)
    assert (decode(memoryview(data).cast(kind)) == decode(data)).all()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.9])
def test_truncated_data_is_refused(form: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    data = encoded(PIL.Image.fromarray(noise), form)
    with pytest.raises(BadImage):
        decode(data[: int(len(data) * share)])


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_a_jpeg_without_its_end_is_refused(picture: np.ndarray, missing: int) -> None:
    data = simplejpeg.encode_jpeg(picture)
    with pytest.raises(BadImage, match="Premature end"):
        decode(data[:-missing])
    with pytest.raises(BadImage, match="Premature end"):
        decode_into(data[:-missing], np.zeros_like(picture))


def test_what_is_no_image_is_refused() -> None:
    for data in (b"", b"\xff", b"hello", b"%!PS-Adobe-3.0", b"\xff\xd8\xff", bytes(1000)):
        for function in (decode, header):
            with pytest.raises(BadImage):
                function(data)


def bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def test_bombs_are_refused_by_their_header(picture: np.ndarray) -> None:
    jpeg = bytearray(simplejpeg.encode_jpeg(picture))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 65_000, 65_000)
    for data in (bytes(jpeg), bomb(8_000, 8_000)):
        with pytest.raises(BadImage, match="more than 50,000,000 pixels"):
            decode(data)
    with pytest.raises(BadImage, match="bomb"):
        decode(bomb(30_000, 30_000))
    with pytest.raises(BadImage, match="more than 100 pixels"):
        decode(simplejpeg.encode_jpeg(picture), max_pixels=100)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), form=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP"]))
def test_damage_never_raises_anything_else(data: st.DataObject, picture: np.ndarray, form: str) -> None:
    damaged = bytearray(encoded(PIL.Image.fromarray(picture), form))
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    for function in (decode, header):
        with suppress(BadImage):
            function(bytes(damaged))
