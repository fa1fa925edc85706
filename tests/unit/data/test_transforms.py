"""Geometry: what the model sees of an image, against plain references."""

import io
import math

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mtl.config import Augment
from mtl.data.image import BadImage, decode
from mtl.data.transforms import Draws, EvalView, TrainView, View, crop_boxes

Pixels = npt.NDArray[np.uint8]
SIDES = st.integers(1, 70)


def noise(height: int, width: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def smooth(height: int, width: int) -> Pixels:
    """Slopes and waves that survive resizing."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return np.stack([255 * x, 255 * y, 127 + 120 * np.sin(3 * x + 2 * y)], axis=2).round().astype(np.uint8)


def png(pixels: Pixels) -> memoryview:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return memoryview(file.getvalue())


def jpeg(pixels: Pixels) -> memoryview:
    return memoryview(simplejpeg.encode_jpeg(pixels, quality=95, colorsubsampling="444"))


def show(view: View, data: memoryview, epoch: int = 0, position: int = 0) -> tuple[Pixels, Draws]:
    draws = view.draw(epoch, np.array([position]))
    out = np.full((view.size_px, view.size_px, 3), 77, np.uint8)
    refused = view.render([data], out[None], draws, [0])
    if refused:
        raise BadImage(refused[0])
    view.finish(out[None], draws)
    return out, draws


def train_view(size_px: int = 16, *, seed: int = 0, **options: object) -> TrainView:
    options = {"pixels": "exact", **options}
    return TrainView(Augment(size_px=size_px, eval_resize_px=size_px, **options), seed)  # type: ignore[arg-type]


def crop_box(
    shape: tuple[int, int], numbers: npt.NDArray[np.float64], scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    augment = Augment(crop_scale=scale, crop_ratio=ratio)
    top, left, height, width = crop_boxes(np.array([shape]), numbers[None], augment)[0].tolist()
    return top, left, height, width


@given(
    SIDES,
    SIDES,
    st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)).map(sorted),
    st.tuples(st.floats(0.3, 3), st.floats(0.3, 3)).map(sorted),
    st.integers(0, 999),
)
def test_crop_boxes_lie_inside_and_have_the_share_and_aspect(
    height: int, width: int, scale: list[float], ratio: list[float], seed: int
) -> None:
    numbers = np.random.default_rng(seed).random(40)
    top, left, h, w = crop_box((height, width), numbers, (scale[0], scale[1]), (ratio[0], ratio[1]))
    assert h >= 1
    assert w >= 1
    assert 0 <= top <= height - h
    assert 0 <= left <= width - w
    if h == w == min(height, width) and (top, left) == ((height - h) // 2, (width - w) // 2):
        return  # the middle square, because nothing fitted
    # Sides are rounded to whole pixels.
    assert (h - 0.5) * (w - 0.5) <= scale[1] * height * width + 1e-6
    assert (h + 0.5) * (w + 0.5) >= scale[0] * height * width - 1e-6
    assert (w - 0.5) / (h + 0.5) <= ratio[1] + 1e-6
    assert (w + 0.5) / (h - 0.5) >= ratio[0] - 1e-6


def test_crop_boxes_are_spread_evenly() -> None:
    """Share, log aspect and place are uniform where every proposal fits."""
    numbers = np.random.default_rng(0).random((4000, 40))
    boxes = crop_boxes(np.full((4000, 2), 1000), numbers, Augment(crop_scale=(0.1, 0.5), crop_ratio=(0.5, 2.0)))
    top, left, h, w = boxes.T.astype(float)
    for got in ((h * w / 1e6 - 0.1) / 0.4, np.log(w / h) / math.log(4) + 0.5, top / (1000 - h), left / (1000 - w)):
        deciles = np.quantile(got, np.arange(1, 10) / 10)
        assert np.abs(deciles - np.arange(1, 10) / 10).max() < 0.05


def test_a_crop_that_never_fits_is_the_middle() -> None:
    assert crop_box((100, 10), np.full(40, 0.99), (0.9, 1), (0.9, 1.1)) == (45, 0, 10, 10)
    assert crop_box((7, 30), np.full(40, 0.99), (0.9, 1), (0.9, 1.1)) == (0, 11, 7, 7)


@settings(max_examples=30)
@given(st.integers(20, 60), st.integers(20, 60), st.integers(0, 10**6))
def test_resized_crops_show_their_box(height: int, width: int, position: int) -> None:
    """The picture is a pair of slopes, so the first and last pixels tell where the box lies."""
    view = train_view(crop="resized", flip=0)
    out, draws = show(view, png(smooth(height, width)), position=position)
    top, left, h, w = crop_box((height, width), draws.numbers[0, 6:], (0.35, 1), (0.75, 4 / 3))
    part = smooth(height, width)[top : top + h, left : left + w].astype(float)
    step = 255 / (min(height, width) - 1) * max(h, w) / 16 + 2
    assert out[:, 0, 0].mean() == pytest.approx(part[:, 0, 0].mean(), abs=step)
    assert out[:, -1, 0].mean() == pytest.approx(part[:, -1, 0].mean(), abs=step)
    assert out[0, :, 1].mean() == pytest.approx(part[0, :, 1].mean(), abs=step)
    assert out[-1, :, 1].mean() == pytest.approx(part[-1, :, 1].mean(), abs=step)


@settings(max_examples=40)
@given(st.integers(0, 20), st.integers(0, 10**6), st.sampled_from([0.0, 0.5, 1.0]))
def test_padded_shifts_equal_a_reference(pad: int, position: int, flip: float) -> None:
    view = train_view(crop="padded", crop_pad_px=pad, flip=flip)
    image = noise(16, 16)
    out, draws = show(view, png(image), position=position)
    top, left = np.floor(draws.numbers[0, 4:6] * (2 * pad + 1)).astype(int)
    expected = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")[top : top + 16, left : left + 16]
    np.testing.assert_array_equal(out, expected[:, ::-1] if draws.flip[0] else expected)


def test_every_shift_occurs() -> None:
    view = train_view(crop="padded", crop_pad_px=2, flip=0)
    seen = {show(view, png(noise(16, 16)), position=position)[0].tobytes() for position in range(400)}
    assert len(seen) == 25


@pytest.mark.parametrize("crop", ["none", "padded", "resized"])
def test_a_mirror_mirrors_and_changes_nothing_else(crop: str) -> None:
    never, always = (train_view(crop=crop, flip=flip) for flip in (0, 1))
    for position in range(20):
        once, draws = show(never, png(noise(16, 16)), position=position)
        again, other = show(always, png(noise(16, 16)), position=position)
        assert (draws.flip[0], other.flip[0]) == (False, True)
        np.testing.assert_array_equal(again, once[:, ::-1])


def test_without_a_crop_the_whole_image_is_shown() -> None:
    view = train_view(crop="none", flip=0)
    np.testing.assert_array_equal(show(view, png(noise(16, 16)))[0], noise(16, 16))
    image = jpeg(smooth(16, 16))
    np.testing.assert_array_equal(show(view, image)[0], decode(image))
    large = np.kron(noise(16, 16), np.ones((3, 2, 1), np.uint8))  # each pixel 3 high and 2 wide
    np.testing.assert_array_equal(show(view, png(large))[0], noise(16, 16))


@settings(max_examples=40)
@given(
    st.integers(24, 120),
    st.integers(24, 120),
    st.sampled_from([(16, 16), (16, 18), (32, 36), (20, 40)]),
    st.booleans(),
)
def test_evaluation_equals_resizing_and_cropping_the_centre(
    height: int, width: int, sizes: tuple[int, int], larger: bool
) -> None:
    size, resize = sizes
    trained = 8 if larger else size
    augment = Augment(size_px=trained, eval_size_px=size if larger else None, eval_resize_px=resize, pixels="exact")
    view = EvalView(augment)
    image = smooth(height, width)
    out, _ = show(view, png(image))
    scale = resize / min(height, width)
    tall, wide = max(resize, round(height * scale)), max(resize, round(width * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    whole = cv2.resize(image, (wide, tall), interpolation=how)
    top, left = (tall - size) // 2, (wide - size) // 2
    expected = whole[top : top + size, left : left + size]
    # The two may lie a pixel of the image, or of the resized image, apart, along both axes; the waves rise steepest.
    allowed = 120 * (3 + 2) * (1 / min(height, width) + 1 / resize)
    assert np.abs(out.astype(int) - expected).max() <= allowed
    assert np.abs(out.astype(float).mean((0, 1)) - expected.mean((0, 1))).max() <= allowed / 2


def test_evaluation_is_exact_where_nothing_is_resized() -> None:
    view = EvalView(Augment(size_px=16, eval_resize_px=16))
    np.testing.assert_array_equal(show(view, png(noise(16, 16)))[0], noise(16, 16))
    np.testing.assert_array_equal(show(view, png(noise(16, 30)))[0], noise(16, 30)[:, 7:23])
    for augment in (Augment(size_px=16, eval_resize_px=20), Augment(size_px=8, eval_size_px=16, eval_resize_px=20)):
        np.testing.assert_array_equal(show(EvalView(augment), png(noise(20, 20)))[0], noise(20, 20)[2:18, 2:18])


def test_training_is_shown_as_if_evaluation_were_too() -> None:
    plain, larger = (
        TrainView(Augment(size_px=16, eval_size_px=eval_px, eval_resize_px=40), 0) for eval_px in (None, 32)
    )
    image = png(smooth(50, 60))
    np.testing.assert_array_equal(show(larger, image, position=3)[0], show(plain, image, position=3)[0])


def test_evaluation_draws_are_neutral() -> None:
    draws = EvalView(Augment()).draw(3, np.arange(5))
    assert not draws.flip.any()
    assert draws.colour.shape == (5, 3)
    assert (draws.colour == 1).all()


def views() -> list[View]:
    options = (train_view(crop=crop, flip=0.5) for crop in ("none", "padded", "resized"))
    return [*options, EvalView(Augment(size_px=16, eval_resize_px=18)), EvalView(Augment(size_px=8, eval_resize_px=8))]


@settings(max_examples=60)
@given(st.sampled_from(views()), SIDES, SIDES, st.booleans(), st.booleans(), st.integers(0, 99))
def test_images_of_any_size_and_format(
    view: View, height: int, width: int, gray: bool, as_png: bool, position: int
) -> None:
    """One colour stays one colour, everywhere in the output: nothing is left unwritten and no edge bleeds in."""
    colour = np.array([90, 90, 90] if gray else [200, 40, 90], np.uint8)
    image = np.broadcast_to(colour, (height, width, 3)).copy()
    if gray:
        file = io.BytesIO()
        Image.fromarray(image[:, :, 0], "L").save(file, "PNG" if as_png else "JPEG", quality=95)
        data = memoryview(file.getvalue())
    else:
        data = png(image) if as_png else jpeg(image)
    out, _ = show(view, data, position=position)
    assert np.abs(out.astype(int) - colour).max() <= 4


@pytest.mark.parametrize("view", views())
def test_damaged_images_are_refused(view: View) -> None:
    for data in (b"", b"no image", bytes(jpeg(noise(30, 30)))[:-200]):
        with pytest.raises(BadImage):
            show(view, memoryview(data))


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=9), st.integers(0, 99), st.integers(0, 2**40))
def test_draws_depend_on_seed_epoch_and_position_only(positions: list[int], epoch: int, seed: int) -> None:
    view = train_view(seed=seed, brightness=0.4, contrast=0.2, saturation=0.1)
    together = view.draw(epoch, np.array(positions))
    for row, position in enumerate(positions):
        alone = train_view(seed=seed, brightness=0.4, contrast=0.2, saturation=0.1).draw(epoch, np.array([position]))
        assert alone.numbers.tolist() == together.numbers[row : row + 1].tolist()
        assert alone.flip.tolist() == together.flip[row : row + 1].tolist()
        assert alone.colour.tolist() == together.colour[row : row + 1].tolist()
    others = view.draw(epoch + 1, np.array(positions)), train_view(seed=seed + 1).draw(epoch, np.array(positions))
    assert all((other.numbers != together.numbers).any() for other in others)


def test_colour_factors_have_the_range_asked_for() -> None:
    view = train_view(brightness=0.4, contrast=0.0, saturation=0.1, flip=0.25)
    draws = view.draw(0, np.arange(4000))
    assert draws.colour.dtype == np.float32
    low, high = draws.colour.min(0), draws.colour.max(0)
    np.testing.assert_allclose(low, [0.6, 1, 0.9], atol=0.01)
    np.testing.assert_allclose(high, [1.4, 1, 1.1], atol=0.01)
    assert (low >= np.array([0.6, 1, 0.9], np.float32)).all()
    assert (high <= np.array([1.4, 1, 1.1], np.float32)).all()
    assert abs(draws.flip.mean() - 0.25) < 0.03


def test_numbers_do_not_depend_on_the_kind_of_crop() -> None:
    """So that the mirror and the colour of a sample stay what they were when a crop is switched on."""
    made = [train_view(crop=crop).draw(2, np.arange(6)) for crop in ("none", "padded", "resized")]
    for draws in made:
        np.testing.assert_array_equal(draws.colour, made[0].colour)
        np.testing.assert_array_equal(draws.flip, made[0].flip)
