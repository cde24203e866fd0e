"""The only decoder and encoder of image files: bytes in, uint8 RGB arrays out, and back.

Files come from strangers, so `decode` goes by what the bytes say and not by a name, reads the header before any
pixel, decodes the whole picture and treats a warning as a failure. It accepts PNG, JPEG and WebP files within MAX_BYTES
and makes one kind of array of them, by this rule:

- the EXIF orientation is applied; where EXIF is broken nobody knows it, and the picture is taken as it is stored;
- of a JPEG with several pictures (MPO, as phones write it) the first is the photograph, and it is read; an animation is
  refused;
- a picture of more than KEPT_PIXELS is halved until it is within: a JPEG while it is decoded, by the scaled inverse
  transform, so that a baseline JPEG may have MAX_PIXELS; whatever is decoded whole may have MAX_WHOLE_PIXELS;
- alpha, also of a palette or of a transparent colour, is laid over white;
- grey, black-and-white and palette pictures become RGB;
- 16 bits a channel become their high byte;
- CMYK becomes RGB by the plain formula (no colour profile), as training loaders do it;
- embedded colour profiles are ignored, for the same reason;
- everything else (other formats and modes) is refused.

A picture is decoded in less than 2 GiB, whatever its header says.

Shapes: H W height and width in pixels, C the channels red, green and blue.
"""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from sharpaudit.errors import printable

Pixels = npt.NDArray[np.uint8]

MAX_BYTES = 256 * 2**20
KEPT_PIXELS = 4096 * 4096
"""No array of `decode` holds more."""
MAX_PIXELS = 200_000_000
"""Of a baseline JPEG, which is decoded in stripes: the largest photographs of phones."""
MAX_WHOLE_PIXELS = 8192 * 8192
"""Of every other picture: Pillow holds all of it, a progressive JPEG's coefficients included."""
THUMBNAIL_PX = 96
_COMPRESS_LEVEL = 6
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16")

# What Pillow's readers are known to raise on bytes that are not what they claim to be.
_REFUSALS = (
    OSError,
    SyntaxError,
    ValueError,
    ArithmeticError,
    LookupError,
    TypeError,
    AttributeError,
    EOFError,
    struct.error,
    zlib.error,
    Warning,
    Image.DecompressionBombError,
)


_OPENERS: dict[str, Callable[[io.BytesIO], Image.Image]] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.jpeg_factory,
    "WEBP": WebPImagePlugin.WebPImageFile,
}
FORMATS = tuple(_OPENERS)

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_SIGNS = (
    ("PNG", 0, b"\x89PNG\r\n\x1a\n"),
    ("JPEG", 0, b"\xff\xd8\xff"),
    ("WEBP", 8, b"WEBP"),
    ("GIF", 0, b"GIF8"),
    ("JPEG 2000", 0, b"\0\0\0\x0cjP  \r\n\x87\n"),
    ("JPEG 2000", 0, b"\xff\x4f\xff\x51"),
    ("JPEG XL", 0, b"\0\0\0\x0cJXL \r\n\x87\n"),
    *(("AVIF", 4, b"ftyp" + brand) for brand in (b"avif", b"avis")),
    *(("HEIC", 4, b"ftyp" + brand) for brand in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")),
)
"""Format, place and bytes that no other kind of file is likely to begin with."""
SIGN_BYTES = 16


class UnreadableImage(ValueError):  # noqa: N818 - it is what the row is, and the status is called so
    """The bytes are no picture within the rules; the message is one printable line."""


def format_of(head: bytes) -> str | None:
    """The picture format that the first SIGN_BYTES of a file tell, also one that `decode` refuses; None for no sign."""
    return next((name for name, at, sign in _SIGNS if head[at : at + len(sign)] == sign), None)


def decode(data: bytes) -> Pixels:
    """The picture as a uint8 RGB array of shape (H, W, 3), at most KEPT_PIXELS of them. Raises UnreadableImage."""
    if len(data) > MAX_BYTES:
        raise UnreadableImage(too_large())
    found = format_of(data[:SIGN_BYTES])
    if found not in _OPENERS:
        what = f"not a {', '.join(FORMATS)} picture{f' but {found}' if found else ''}"
        raise UnreadableImage(what if data else "an empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            # What EXIF and the list of further pictures hold is of no concern, but for the orientation.
            warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.(Tiff|Jpeg)ImagePlugin")
            with _OPENERS[found](io.BytesIO(data)) as image:
                _check_header(image)
                small = _rgb(_load(image))
                turn = _turn(image)  # after loading: a PNG may say it behind its pixels
                return np.array(small if turn is None else small.transpose(turn), dtype=np.uint8)
    except UnreadableImage:
        raise
    except _REFUSALS as error:
        raise UnreadableImage(f"{type(error).__name__}: {printable(str(error))}") from error


def too_large() -> str:
    """Why a file of more than MAX_BYTES is refused."""
    return f"more than the limit of {MAX_BYTES} bytes"


def encode_png(pixels: Pixels) -> bytes:
    """The picture as PNG without metadata; the same array gives the same bytes under one Pillow version."""
    _check_pixels(pixels)
    return _png(Image.fromarray(np.ascontiguousarray(pixels)))


def thumbnail(pixels: Pixels, side_px: int = THUMBNAIL_PX) -> bytes:
    """A PNG of the picture whose longer side is at most `side_px`; never enlarged."""
    _check_pixels(pixels)
    height, width = pixels.shape[:2]
    scale = side_px / max(height, width)
    if scale >= 1:
        return encode_png(pixels)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.LANCZOS)
    return _png(small)


def resized(pixels: Pixels, height: int, width: int, interpolation: str) -> Pixels:
    """The picture at another size, each pixel a weighted mean of all that it covers ("bilinear" or "bicubic")."""
    _check_pixels(pixels)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize((width, height), Image.Resampling[interpolation.upper()]))


def sha256_hex(data: bytes) -> str:
    """The SHA-256 of a file's bytes: what a picture is called."""
    return hashlib.sha256(data).hexdigest()


def _png(image: Image.Image) -> bytes:
    sink = io.BytesIO()
    image.save(sink, format="PNG", compress_level=_COMPRESS_LEVEL)
    return sink.getvalue()


def _check_header(image: Image.Image) -> None:
    width, height = image.size
    in_stripes = isinstance(image, JpegImagePlugin.JpegImageFile) and "progressive" not in image.info
    allowed = MAX_PIXELS if in_stripes else MAX_WHOLE_PIXELS
    if width < 1 or height < 1 or width * height > allowed:
        raise UnreadableImage(f"{width}x{height} pixels; allowed are 1 to {allowed}")
    n_frames = getattr(image, "n_frames", 1)
    if n_frames != 1 and image.format != "MPO":
        raise UnreadableImage(f"{n_frames} pictures in one file; only still pictures are read")
    if image.mode not in _MODES:
        raise UnreadableImage(f"mode {image.mode}; allowed are {', '.join(_MODES)}")
    if image.mode == "I;16" and "transparency" in image.info:
        raise UnreadableImage("16-bit grey with a transparent colour")


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        told: Any = image.getexif().get(ExifTags.Base.Orientation)
        return _TURNS.get(told)
    except _REFUSALS:
        return None


def _load(image: Image.Image) -> Image.Image:
    """The picture decoded and within KEPT_PIXELS, in a mode that can be shrunk: L, RGB, RGBA or CMYK."""
    halved = _halvings(image.size)
    if halved > 1:
        image.draft(None, (max(1, image.width // halved), max(1, image.height // halved)))
    image.load()
    if image.mode == "I;16":
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
    elif image.mode in ("1", "P"):
        image = image.convert("RGB")
    left = _halvings(image.size)
    return image.reduce(left) if left > 1 else image


def _halvings(size: tuple[int, int]) -> int:
    """The smallest power of two by which both sides are to be divided so that KEPT_PIXELS hold the picture."""
    factor = 1
    while -(-size[0] // factor) * -(-size[1] // factor) > KEPT_PIXELS:
        factor *= 2
    return factor


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _check_pixels(pixels: Pixels) -> None:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
        raise ValueError(f"a picture is a uint8 array of shape (H, W, 3), not {pixels.dtype} {pixels.shape}")
