"""Image files from strangers: refused with a reason, or converted by one documented rule."""

from __future__ import annotations

import contextlib
import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sharpaudit import images
from sharpaudit.images import UnreadableImage, decode, encode_png, sha256_hex, thumbnail
from tests.support.shells import bare


def file_of(image: Image.Image, kind: str, **options) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format=kind, **options)
    return sink.getvalue()


def gradient(height: int = 24, width: int = 40) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=-1).astype(np.uint8)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def sized(jpeg: bytes, width: int, height: int) -> bytes:
    """A JPEG that claims another size than its data have."""
    at = next(jpeg.index(marker) for marker in (b"\xff\xc0", b"\xff\xc2") if marker in jpeg)
    return jpeg[: at + 5] + struct.pack(">HH", height, width) + jpeg[at + 9 :]


def png(width: int, height: int, depth: int, colour: int, raw: bytes) -> bytes:
    """A PNG made by hand, whose header need not fit its data."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)), (b"IDAT", zlib.compress(raw))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in [*chunks, (b"IEND", b"")])


PICTURE = Image.fromarray(gradient())
JPEG = file_of(PICTURE, "JPEG", quality=95)
PROGRESSIVE = file_of(PICTURE, "JPEG", progressive=True)
PNG = file_of(PICTURE, "PNG")
OTHER = Image.fromarray(gradient()[::-1].copy())
FLOAT_TIFF = file_of(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")

HOSTILE = {
    "empty": b"",
    "text": b"this is not a picture",
    "html": b"<html><body>404</body></html>",
    "lying header": png(9000, 9000, 8, 2, b"\0" * 8),
    "lying header beyond Pillow's warning": png(12000, 12000, 8, 2, b"\0" * 8),
    "lying header beyond Pillow's limit": png(20000, 20000, 8, 2, b"\0" * 8),
    "long and thin": png(4096 * 4096 + 1, 1, 8, 0, b"\0" * 8),
    "no width": png(0, 8, 8, 2, b"\0" * 8),
    "too little data": png(64, 64, 8, 2, b"\0" * 8),
    "half a JPEG": JPEG[: len(JPEG) // 2],
    "half a PNG": PNG[: len(PNG) // 2],
    "half a WebP": (lambda data: data[: len(data) // 2])(file_of(PICTURE, "WEBP")),
    "changed PNG pixel data": PNG[:60] + bytes([PNG[60] ^ 255]) + PNG[61:],
    "an APNG that contradicts itself": PNG[:33] + chunk(b"acTL", struct.pack(">II", 0, 0)) + PNG[33:],
    "gif": file_of(PICTURE.convert("P"), "GIF"),
    "animated gif": file_of(PICTURE.convert("P"), "GIF", save_all=True, append_images=[OTHER.convert("P")]),
    "animated webp": file_of(PICTURE, "WEBP", save_all=True, append_images=[OTHER]),
    "animated png": file_of(PICTURE, "PNG", save_all=True, append_images=[OTHER]),
    "avif": file_of(PICTURE, "AVIF"),
    "JPEG 2000": file_of(PICTURE, "JPEG2000"),
    "half of several pictures in a JPEG": (lambda data: data[: len(data) // 4])(
        file_of(PICTURE, "MPO", save_all=True, append_images=[OTHER], quality=95)
    ),
    "a JPEG beyond the limit": sized(JPEG, 16384, 12240),
    "a progressive JPEG beyond the limit of what is decoded whole": sized(PROGRESSIVE, 8193, 8192),
    "bmp": file_of(PICTURE, "BMP"),
    "float tiff": FLOAT_TIFF,
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
    "16-bit grey with a transparent colour": file_of(
        Image.fromarray(np.full((4, 4), 9, np.uint16)), "PNG", transparency=9
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_one_printable_line(name):
    with pytest.raises(UnreadableImage) as caught:
        decode(HOSTILE[name])
    assert str(caught.value).isprintable()
    assert 0 < len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("data", "limit_kb"), [(HOSTILE["lying header"], 50_000), (sized(JPEG, 16320, 12240), 300_000)]
)
def test_a_lying_header_costs_no_memory(data, limit_kb):
    """libjpeg takes what is missing before the end marker for grey, so the second is decoded, in stripes."""
    script = """
import contextlib, sys
from pathlib import Path
from sharpaudit.images import UnreadableImage, decode
# Not getrusage, which counts what the process was that started this one.
peak = lambda: int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
data, before = bytes.fromhex(sys.argv[1]), peak()
with contextlib.suppress(UnreadableImage):
    decode(data)
print(peak() - before)
"""
    assert len(data) < 2000
    call = [sys.executable, "-c", script, data.hex()]
    child = subprocess.run(call, env=bare(), capture_output=True, text=True, timeout=60)
    assert int(child.stdout) < limit_kb  # where all pixels are 243,000 and 800,000


def test_files_over_the_byte_limit_are_not_opened(monkeypatch):
    monkeypatch.setattr(images, "MAX_BYTES", len(PNG) - 1)
    with pytest.raises(UnreadableImage, match="bytes"):
        decode(PNG)


@pytest.mark.parametrize(
    ("limit", "data"), [("MAX_PIXELS", JPEG), ("MAX_WHOLE_PIXELS", PNG), ("MAX_WHOLE_PIXELS", PROGRESSIVE)]
)
def test_the_pixel_limit_is_inclusive(monkeypatch, limit, data):
    monkeypatch.setattr(images, limit, 24 * 40)
    assert decode(data).shape == (24, 40, 3)
    monkeypatch.setattr(images, limit, 24 * 40 - 1)
    with pytest.raises(UnreadableImage, match="40x24"):
        decode(data)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *(("JPEG", mode) for mode in ("RGB", "L", "CMYK", "progressive")),
        *(("PNG", mode) for mode in ("RGB", "L", "1", "P", "LA", "RGBA", "16 bits")),
        *(("WEBP", mode) for mode in ("RGB", "RGBA")),
    ],
)
def test_a_large_picture_is_the_mean_of_its_pixels(monkeypatch, kind, mode):
    """The oracle: blocks of the picture that is decoded whole."""
    image = Image.fromarray(np.kron(gradient(64, 96), np.ones((3, 3, 1), np.uint8)))
    if mode == "16 bits":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    elif mode != "progressive":
        image = image.convert(mode)
    data = file_of(image, kind, quality=95, progressive=mode == "progressive")
    whole = decode(data)
    monkeypatch.setattr(images, "KEPT_PIXELS", 80 * 60)
    small = decode(data)
    assert small.shape == (48, 72, 3)
    blocks = whole.reshape(48, 4, 72, 4, 3).mean((1, 3))
    assert np.abs(small - blocks).mean() < 2
    assert np.abs(small - blocks).max() < 40


@pytest.mark.parametrize("width", [80, 81, 83])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_no_side_that_is_no_multiple_is_cut_or_refused(monkeypatch, width, kind):
    monkeypatch.setattr(images, "KEPT_PIXELS", 1000)
    exif = Image.Exif()
    exif[0x0112] = 6
    found = decode(file_of(Image.fromarray(gradient(63, width)), kind, exif=exif))
    assert found.shape == (-(-width // 4), 16, 3)
    assert found[0, -1, 0] < 40 < 200 < found[-1, 0, 0]  # turned: red grows downwards


def test_a_photograph_of_24_megapixels_is_read():
    photograph = Image.fromarray(gradient(40, 60)).resize((6000, 4000), Image.Resampling.NEAREST)
    found = decode(file_of(photograph, "JPEG"))
    assert found.shape == (2000, 3000, 3)
    assert np.abs(found[::50, ::50].astype(int) - gradient(40, 60)).max() < 20


def test_of_several_pictures_in_a_jpeg_the_first_is_read():
    both = file_of(PICTURE, "MPO", save_all=True, append_images=[OTHER], quality=95)
    assert np.array_equal(decode(both), decode(JPEG))
    assert len(both) > 1.8 * len(JPEG)


@pytest.mark.parametrize("place", ["MPF\0", "II*\0", "\2\xb0"])
def test_a_broken_list_of_further_pictures_does_not_matter(place):
    both = file_of(PICTURE, "MPO", save_all=True, append_images=[OTHER], quality=95)
    at = both.index(b"MPF\0")
    sign = both.index(place.encode("latin-1"), at)
    assert np.array_equal(decode(both[:sign] + b"\xee\xee" + both[sign + 2 :]), decode(JPEG))


BROKEN_EXIF = {
    "nonsense": b"nonsense",
    "empty": b"",
    "cut": b"II*\0\x08\0\0\0\x05\0\x12\x01",
    "offset beyond the end": b"MM\0*\xff\xff\xff\xff",
    "entry of no known type": b"II*\0\x08\0\0\0\x01\0\x12\x01\xff\xff\x01\0\0\0\x06\0\0\0\0\0\0\0",
    "text for a number": b"II*\0\x08\0\0\0\x01\0\x12\x01\2\0\x01\0\0\0\x06\0\0\0\0\0\0\0",
    "orientation 9": b"II*\0\x08\0\0\0\x01\0\x12\x01\3\0\x01\0\0\0\x09\0\0\0\0\0\0\0",
    "two orientations": b"II*\0\x08\0\0\0\x01\0\x12\x01\3\0\x02\0\0\0\x09\0\x09\0\0\0\0\0",
}


@pytest.mark.parametrize("name", BROKEN_EXIF)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_where_exif_is_broken_a_picture_is_taken_as_it_is_stored(name, kind):
    plain = file_of(PICTURE, kind)
    assert np.array_equal(decode(file_of(PICTURE, kind, exif=b"Exif\0\0" + BROKEN_EXIF[name])), decode(plain))


@pytest.mark.parametrize(
    ("image", "kind", "told"),
    [
        ("PNG", "PNG", "PNG"),
        *((kind, kind, kind) for kind in ("JPEG", "WEBP", "GIF", "AVIF")),
        ("", "JPEG2000", "JPEG 2000"),
    ],
)
def test_the_first_bytes_tell_the_format(image, kind, told):
    assert images.format_of(file_of(PICTURE, kind)[: images.SIGN_BYTES]) == told


@pytest.mark.parametrize("data", [b"", b"BM", b"a caption", b"\0" * 16, b"RIFF0000WAVEfmt ", b"\0\0\0\x20ftypisom0000"])
def test_what_is_no_picture_is_not_taken_for_one(data):
    assert images.format_of(data[: images.SIGN_BYTES]) is None


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "WEBP"]), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8))
def test_any_changed_file_is_a_picture_or_a_refusal(kind, changes):
    data = bytearray(file_of(PICTURE, kind))
    for place, byte in changes:
        data[int(place * (len(data) - 1))] = byte
    with contextlib.suppress(UnreadableImage):
        assert decode(bytes(data)).dtype == np.uint8


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "WEBP"]), st.integers(1, 1500))
def test_a_cut_file_never_gives_part_of_a_picture(kind, cut):
    data = file_of(PICTURE, kind)
    with contextlib.suppress(UnreadableImage):
        assert np.array_equal(decode(data[: max(0, len(data) - cut)]), decode(data))
        assert cut <= 21  # only what closes a file may be missing


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = gradient()
    turned = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    data = file_of(Image.fromarray(np.ascontiguousarray(turned)), "PNG", exif=exif)
    assert np.array_equal(decode(data), upright)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_alpha_is_laid_over_white(kind):
    rgba = np.dstack([np.full((8, 8, 3), 10, np.uint8), np.full((8, 8), 255, np.uint8)])
    rgba[:4, :, 3] = 0
    rgba[4, :, 3] = 128
    found = decode(file_of(Image.fromarray(rgba), kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert (found[:4] == 255).all()
    assert (found[5:] == 10).all()
    assert (np.abs(found[4].astype(int) - 132) <= 1).all()


def test_palette_with_alpha_is_laid_over_white():
    palette = Image.new("P", (4, 2))
    palette.putpalette([200, 0, 0, 0, 0, 200])
    palette.putdata([0, 0, 1, 1] * 2)
    data = file_of(palette, "PNG", transparency=bytes([0, 255]))
    assert decode(data)[0].tolist() == [[255, 255, 255]] * 2 + [[0, 0, 200]] * 2


def test_a_transparent_colour_is_laid_over_white():
    data = file_of(Image.fromarray(np.array([[0, 7]], np.uint8)), "PNG", transparency=7)
    assert decode(data).tolist() == [[[0, 0, 0], [255, 255, 255]]]


def test_grey_and_black_and_white_become_rgb():
    grey = gradient()[:, :, 0]
    assert np.array_equal(decode(file_of(Image.fromarray(grey), "PNG")), np.repeat(grey[:, :, None], 3, axis=2))
    bits = Image.fromarray(grey).convert("1")
    assert np.array_equal(decode(file_of(bits, "PNG"))[:, :, 0] == 255, np.asarray(bits))


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3)])
def test_16_bits_become_their_high_byte(colour, channels):
    values = np.linspace(0, 65535, 5 * 7 * channels).astype(">u2").reshape(5, 7 * channels)
    raw = b"".join(b"\0" + row.tobytes() for row in values)
    expected = (values.astype(int) >> 8).reshape(5, 7, channels)
    assert np.array_equal(decode(png(7, 5, 16, colour, raw)), np.broadcast_to(expected, (5, 7, 3)))


def test_cmyk_becomes_rgb_by_the_plain_formula():
    cmyk = Image.new("CMYK", (16, 16), (0, 128, 255, 64))
    found = decode(file_of(cmyk, "JPEG", quality=100))
    expected = [(255 - ink) * (255 - 64) / 255 for ink in (0, 128, 255)]
    assert (np.abs(found.astype(int) - np.array(expected)) <= 4).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_png_round_trip_is_exact_and_deterministic(height, width, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    data = encode_png(pixels)
    assert np.array_equal(decode(data), pixels)
    assert encode_png(pixels.copy()) == data
    assert encode_png(np.asfortranarray(pixels)) == data


def test_png_carries_no_metadata():
    data, kinds, at = encode_png(gradient()), [], 8
    while at < len(data):
        kinds.append(data[at + 4 : at + 8])
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    assert set(kinds) == {b"IHDR", b"IDAT", b"IEND"}


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((200, 400), (48, 96)), ((400, 200), (96, 48)), ((20, 30), (20, 30)), ((1, 5000), (1, 96)), ((96, 96), (96, 96))],
)
def test_thumbnails_fit_keep_their_shape_and_never_grow(shape, expected):
    pixels = np.full((*shape, 3), 77, np.uint8)
    small = decode(thumbnail(pixels))
    assert small.shape == (*expected, 3)
    assert (small == 77).all()
    assert thumbnail(pixels) == thumbnail(pixels.copy())


@pytest.mark.parametrize(
    "pixels", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)]
)
def test_only_rgb_bytes_are_encoded(pixels):
    with pytest.raises(ValueError, match="uint8"):
        encode_png(pixels)
    with pytest.raises(ValueError, match="uint8"):
        thumbnail(pixels)


def test_sha256_of_nothing():
    assert sha256_hex(b"").startswith("e3b0c44298fc1c14")
