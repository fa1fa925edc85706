"""Odd and malformed images made on the spot, each with what must become of it."""

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import PIL.Image
import simplejpeg

Pixels = npt.NDArray[np.uint8]

HEIGHT, WIDTH = 40, 56


@dataclass(frozen=True)
class Case:
    """Bytes, and their outcome: these pixels (to `tolerance` levels on average), or a refusal that says `reason`."""

    name: str
    data: bytes
    pixels: Pixels | None = None
    tolerance: float = 0.0
    reason: str | None = None


def picture() -> Pixels:
    """A smooth uint8 [40, 56, 3] without symmetry, so that lossy formats stay close to it."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([4 * x, 5 * y, 255 - 2 * x - 2 * y], axis=2).clip(0, 255).astype(np.uint8)


def saved(image: PIL.Image.Image | Pixels, form: str, **options: object) -> bytes:
    """`image` as Pillow writes it."""
    buffer = io.BytesIO()
    (image if isinstance(image, PIL.Image.Image) else PIL.Image.fromarray(image)).save(buffer, form, **options)
    return buffer.getvalue()


def exif(orientation: int, order: str = ">") -> bytes:
    """An EXIF block with this orientation alone."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return b"Exif\0\0" + mark + struct.pack(order + "IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def upright(image: Pixels, orientation: int) -> Pixels:
    """`image` as a viewer shows it with this EXIF orientation."""
    turned = [image, image[:, ::-1], image[::-1, ::-1], image[::-1]]
    turned += [image.transpose(1, 0, 2), np.rot90(image, -1), image[::-1, ::-1].transpose(1, 0, 2), np.rot90(image)]
    return turned[orientation - 1]


def png(width: int, height: int, rows: bytes, *, depth: int = 8, colour: int = 2, end: bool = True) -> bytes:
    """A PNG of `rows`, each with its filter byte, whatever they hold."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + (chunk(b"IEND", b"") if end else b"")


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    """A WebP of these chunks."""
    body = b"WEBP" + b"".join(kind + struct.pack("<I", len(data)) + data for kind, data in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def corpus() -> list[Case]:
    """All cases; their names are distinct."""
    return [*_jpegs(), *_others(), *_no_images(), *_damaged(), *_bombs()]


def _jpegs() -> Iterator[Case]:
    image = picture()
    gray = np.asarray(PIL.Image.fromarray(image).convert("L"))
    plain = saved(image, "JPEG", quality=95)
    for sampling in ("444", "422", "420", "440", "411"):
        data = simplejpeg.encode_jpeg(image, quality=95, colorsubsampling=sampling)
        yield Case(f"jpeg {sampling}", data, image, 8)
    yield Case("jpeg gray", saved(gray, "JPEG", quality=95), np.repeat(gray[..., None], 3, 2), 2)
    for name, options in {
        "progressive": {"progressive": True},
        "optimised": {"optimize": True},
        "with restart markers": {"restart_marker_rows": 1},
        "with a comment": {"comment": b"a word " * 99},
        "with a colour profile": {"icc_profile": bytes(range(256)) * 9},
        "without conversion of colours": {"keep_rgb": True},
        "with EXIF cut short": {"exif": exif(6)[:20]},
        "with an orientation that there is not": {"exif": exif(9)},
    }.items():
        yield Case(f"jpeg {name}", saved(image, "JPEG", quality=95, **options), image, 8)
    yield Case("jpeg CMYK", saved(PIL.Image.fromarray(image).convert("CMYK"), "JPEG", quality=95), image, 8)
    yield Case("jpeg of lowest quality", saved(image, "JPEG", quality=1), image, 30)
    yield Case("jpeg and then something else", plain + b"trailing bytes", image, 8)
    yield Case("jpeg and then another one", plain + saved(image[::-1], "JPEG"), image, 8)
    yield Case("jpeg with padding before a marker", plain[:2] + b"\xff\xff" + plain[2:], image, 8)
    yield Case("jpeg of one pixel", saved(image[:1, :1], "JPEG", quality=95), image[:1, :1], 4)
    yield Case("jpeg of one row", saved(image[:1], "JPEG", quality=95), image[:1], 8)
    for orientation in range(1, 9):
        for order in "<>":
            data = saved(image, "JPEG", quality=95, exif=exif(orientation, order))
            yield Case(f"jpeg orientation {orientation} {order}", data, upright(image, orientation), 8)
    data = saved(image, "JPEG", quality=95, progressive=True, exif=exif(8))
    yield Case("jpeg progressive and turned", data, upright(image, 8), 8)


def _others() -> Iterator[Case]:
    image, as_pil = picture(), PIL.Image.fromarray(picture())
    gray = np.asarray(as_pil.convert("L"))
    three = np.repeat(gray[..., None], 3, 2)
    black = as_pil.convert("1")
    yield Case("png", saved(image, "PNG"), image)
    yield Case("png gray", saved(gray, "PNG"), three)
    yield Case("png gray and alpha", saved(as_pil.convert("LA"), "PNG"), three)
    yield Case("png alpha", saved(as_pil.convert("RGBA"), "PNG"), image)
    yield Case("png one bit", saved(black, "PNG"), np.asarray(black.convert("RGB")))
    palette = as_pil.quantize(200)
    shown = np.asarray(palette.convert("RGB"))
    yield Case("png palette", saved(palette, "PNG"), shown)
    yield Case("png palette with a transparent colour", saved(palette, "PNG", transparency=3), shown)
    yield Case("png palette with alpha", saved(palette, "PNG", transparency=bytes(range(200))), shown)
    few = as_pil.quantize(4)
    yield Case("png palette of two bits", saved(few, "PNG", bits=2), np.asarray(few.convert("RGB")))
    wide = gray.astype(np.uint16) * 256 + 17
    yield Case("png gray of 16 bits", saved(PIL.Image.fromarray(wide), "PNG"), three)
    deep = (image.astype(np.uint16) * 256 + 9).astype(">u2").reshape(HEIGHT, -1).view(np.uint8)
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    yield Case("png of 16 bits", png(WIDTH, HEIGHT, rows, depth=16), image)
    # Its checksums are sound, so nobody damaged it: what its writer left out is black to Pillow.
    half = np.repeat(np.array([7] * 5 + [0] * 4, np.uint8), 27).reshape(9, 9, 3)
    yield Case("png with too few rows", png(9, 9, (b"\0" + b"\x07" * 27) * 5), half)
    yield Case("png turned", saved(image, "PNG", exif=exif(6)), upright(image, 6))
    yield Case("webp", saved(image, "WEBP", quality=95), image, 8)
    yield Case("webp lossless", saved(image, "WEBP", lossless=True), image)
    yield Case("webp alpha", saved(as_pil.convert("RGBA"), "WEBP", lossless=True), image)
    yield Case("webp turned", saved(image, "WEBP", lossless=True, exif=exif(3)), upright(image, 3))
    moving = {"save_all": True, "append_images": [PIL.Image.fromarray(image[::-1].copy())]}
    yield Case("webp animated", saved(as_pil, "WEBP", lossless=True, **moving), image)
    yield Case("gif", saved(palette, "GIF"), shown)
    yield Case("gif transparent", saved(palette, "GIF", transparency=3), shown)
    yield Case("gif animated", saved(palette, "GIF", save_all=True, append_images=[as_pil.quantize(9)]), shown)
    yield Case("bmp", saved(image, "BMP"), image)
    yield Case("bmp palette", saved(as_pil.convert("P"), "BMP"), np.asarray(as_pil.convert("P").convert("RGB")))
    yield Case("bmp one bit", saved(black, "BMP"), np.asarray(black.convert("RGB")))


def _no_images() -> Iterator[Case]:
    image = picture()
    unknown = "cannot identify"
    for name, data in {
        "nothing": b"",
        "one byte": b"\xff",
        "zeros": bytes(1000),
        "text": b"hello, this is no image",
        "html": b"<html><body>404 Not Found</body></html>",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "pdf": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj",
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0",
        "zip": b"PK\x03\x04" + bytes(60),
        "mp4": b"\0\0\0\x18ftypmp42" + bytes(60),
        "tiff": saved(image, "TIFF"),
        "ppm": saved(image, "PPM"),
        "ico": saved(image, "ICO"),
        "parquet": b"PAR1" + bytes(60) + b"PAR1",
        "json": b'{"url": "https://example.org/cat.jpg"}',
    }.items():
        yield Case(f"no image: {name}", data, reason=unknown)


def _damaged() -> Iterator[Case]:
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    jpeg, lossless = saved(noise, "JPEG", quality=90), saved(noise, "PNG")
    frame = jpeg.index(b"\xff\xc0")
    for share in (0.5, 0.9):
        cut = {form: saved(noise, form) for form in ("JPEG", "PNG", "WEBP", "BMP")}
        for form, data in cut.items():
            yield Case(f"{form} cut to {share:.0%}", data[: int(len(data) * share)], reason=".")
    yield Case("jpeg without its end", jpeg[:-2], reason="Premature end")
    yield Case("jpeg progressive cut", saved(noise, "JPEG", progressive=True)[:-300], reason="Premature end")
    yield Case("jpeg of its first two bytes", jpeg[:2], reason=".")
    yield Case("jpeg of start and end", b"\xff\xd8\xff\xd9", reason=".")
    yield Case("jpeg header alone", jpeg[: frame + 4], reason=".")
    yield Case("jpeg with a hole of zeros", jpeg[:-900] + bytes(700) + jpeg[-200:], reason=".")
    yield Case("jpeg lossless by its marker", jpeg[: frame + 1] + b"\xc3" + jpeg[frame + 2 :], reason=".")
    yield Case("jpeg of no height", jpeg[: frame + 5] + b"\0\0" + jpeg[frame + 7 :], reason=".")
    yield Case("jpeg of no width", jpeg[: frame + 7] + b"\0\0" + jpeg[frame + 9 :], reason=".")
    yield Case("jpeg as its own text", jpeg.hex().encode(), reason="cannot identify")
    yield Case("jpeg without its first byte", jpeg[1:], reason="cannot identify")
    yield Case("png with a wrong header checksum", lossless[:20] + b"\x01" + lossless[21:], reason=".")
    yield Case("png of no width", png(0, 5, b""), reason=".")
    bad = bytearray(lossless)
    bad[60:80] = bytes(20)
    yield Case("png with a hole", bytes(bad), reason=".")
    yield Case("png header alone", lossless[:33], reason=".")
    yield Case("gif header alone", saved(PIL.Image.fromarray(noise).quantize(), "GIF")[:13], reason=".")
    yield Case("webp of no chunk", riff(), reason=".")
    yield Case("webp of an unknown chunk", riff((b"JUNK", bytes(40))), reason=".")


def _bombs() -> Iterator[Case]:
    too_many = "more than 50,000,000 pixels"
    jpeg = bytearray(saved(picture(), "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", 65_000, 65_000)
    yield Case("bomb jpeg", bytes(jpeg), reason=too_many)
    yield Case("bomb png", png(8_000, 8_000, bytes(100)), reason=too_many)
    yield Case("bomb png that Pillow refuses", png(30_000, 30_000, bytes(100)), reason="bomb|" + too_many)
    canvas = bytes(4) + (16_000 - 1).to_bytes(3, "little") * 2
    yield Case("bomb webp extended", riff((b"VP8X", canvas), (b"ANIM", bytes(6))), reason=too_many)
    size = 16_000 - 1 | 16_000 - 1 << 14
    yield Case("bomb webp lossless", riff((b"VP8L", b"\x2f" + struct.pack("<I", size) + bytes(9))), reason=too_many)
    lossy = b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 16_000, 16_000)
    yield Case("bomb webp lossy", riff((b"VP8 ", lossy + bytes(20))), reason=too_many)
    yield Case("bomb gif", b"GIF89a" + struct.pack("<HHBBB", 8_000, 8_000, 0, 0, 0) + bytes(20), reason=".")
    head = struct.pack("<2sIHHI", b"BM", 54, 0, 0, 54)
    bmp = head + struct.pack("<IiiHHIIiiII", 40, 8_000, 8_000, 1, 24, 0, 0, 0, 0, 0, 0)
    yield Case("bomb bmp", bmp, reason=too_many)
