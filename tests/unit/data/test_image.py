"""Encoded images: every format to RGB, broken ones refused, bombs never decoded."""

import struct
from contextlib import suppress

import numpy as np
import PIL.Image
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl.data.image import BadImage, decode, decode_into, examine, header
from tests.helpers.corpus import Case, corpus, exif, png, upright
from tests.helpers.corpus import picture as draw
from tests.helpers.corpus import saved as encoded

HEIGHT, WIDTH = 40, 56
CORPUS = corpus()


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return draw()


@pytest.mark.parametrize("case", CORPUS, ids=lambda case: case.name)
@pytest.mark.parametrize("fast", [False, True])
def test_the_corpus(case: Case, fast: bool) -> None:
    if case.reason is not None:
        with pytest.raises(BadImage, match=case.reason):
            decode(case.data, fast=fast)
        with pytest.raises(BadImage, match=case.reason):
            decode_into(case.data, np.zeros((HEIGHT, WIDTH, 3), np.uint8), fast=fast)
        with suppress(BadImage):  # a header may be sound where the rest is not
            examine(case.data)
        return
    assert case.pixels is not None
    found, told = examine(case.data), header(case.data)
    assert (found.height, found.width) == (told.height, told.width) == case.pixels.shape[:2]
    pixels = decode(case.data, fast=fast)
    assert (pixels.dtype, pixels.shape) == (np.uint8, case.pixels.shape)
    assert np.abs(pixels.astype(int) - case.pixels).mean() <= case.tolerance
    np.testing.assert_array_equal(decode(case.data, found, fast=fast), pixels)
    out = np.full(case.pixels.shape, 7, np.uint8)
    assert decode_into(case.data, out, fast=fast)
    np.testing.assert_array_equal(out, pixels)


def test_the_corpus_is_large_and_its_names_are_distinct() -> None:
    assert len({case.name for case in CORPUS}) == len(CORPUS) >= 60


@pytest.mark.parametrize("shrink", [1, 2, 4, 8])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(40, 56), (41, 59)])
def test_a_jpeg_can_shrink_while_it_is_decoded(shrink: int, orientation: int, size: tuple[int, int]) -> None:
    whole = np.kron(draw(), np.ones((4, 4, 1), np.uint8))[: size[0] * 2, : size[1] * 2]
    data = encoded(whole, "JPEG", quality=98, subsampling=0, exif=exif(orientation))
    small = decode(data, shrink=shrink)
    tall, wide = (-(-side // shrink) for side in whole.shape[:2])
    padded = np.pad(whole, ((0, tall * shrink - len(whole)), (0, wide * shrink - whole.shape[1]), (0, 0)), "edge")
    means = upright(padded.reshape(tall, shrink, wide, shrink, 3).mean((1, 3)), orientation)
    assert small.shape == means.shape
    assert np.abs(small - means).mean() < 4


def close(a: np.ndarray, b: np.ndarray, tolerance: float = 6) -> bool:
    return a.shape == b.shape and float(np.abs(a.astype(int) - b).mean()) < tolerance


def test_gray_jpeg_has_three_equal_channels(picture: np.ndarray) -> None:
    pixels = decode(simplejpeg.encode_jpeg(picture[:, :, :1].copy(), colorspace="GRAY", colorsubsampling="Gray"))
    assert (pixels[..., 0] == pixels[..., 1]).all()
    assert (pixels[..., 0] == pixels[..., 2]).all()


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


def test_bombs_are_refused_by_their_header(picture: np.ndarray) -> None:
    jpeg = bytearray(simplejpeg.encode_jpeg(picture))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 65_000, 65_000)
    for data in (bytes(jpeg), png(8_000, 8_000, bytes(100))):
        with pytest.raises(BadImage, match="more than 50,000,000 pixels"):
            decode(data)
    with pytest.raises(BadImage, match="bomb"):
        decode(png(30_000, 30_000, bytes(100)))
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
