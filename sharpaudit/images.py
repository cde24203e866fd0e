"""The only decoder and encoder of image files: bytes in, uint8 RGB arrays out, and back.

Files come from strangers, so `decode` reads the header before any pixel, decodes the whole picture and
treats a warning as a failure. It accepts still PNG, JPEG and WebP files within MAX_BYTES and MAX_PIXELS and
makes one kind of array of them, by these rules:

- the EXIF orientation is applied; where EXIF is broken nobody knows it, and the file is refused;
- alpha, also of a palette or of a transparent colour, is laid over white;
- grey, black-and-white and palette pictures become RGB;
- 16 bits a channel become their high byte;
- CMYK becomes RGB by the plain formula (no colour profile), as training loaders do it;
- embedded colour profiles are ignored, for the same reason;
- everything else (animations, several pictures in a file, other formats and modes) is refused.

Shapes: H W height and width in pixels, C the channels red, green and blue.
"""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
import zlib

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from sharpaudit.errors import printable

Pixels = npt.NDArray[np.uint8]

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_BYTES = 64 * 2**20
MAX_PIXELS = 4096 * 4096
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


class UnreadableImage(ValueError):  # noqa: N818 - it is what the row is, and the status is called so
    """The bytes are no picture within the rules; the message is one printable line."""


def decode(data: bytes) -> Pixels:
    """The picture as a uint8 RGB array of shape (H, W, 3). Raises UnreadableImage."""
    if len(data) > MAX_BYTES:
        raise UnreadableImage(f"more than the limit of {MAX_BYTES} bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_header(image)
                image.load()
                return np.array(_rgb(ImageOps.exif_transpose(image)), dtype=np.uint8)
    except UnreadableImage:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImage(f"not a {', '.join(FORMATS)} picture") from error
    except _REFUSALS as error:
        raise UnreadableImage(f"{type(error).__name__}: {printable(str(error))}") from error


def encode_png(pixels: Pixels) -> bytes:
    """The picture as PNG without metadata; the same array gives the same bytes under one Pillow version."""
    _check_pixels(pixels)
    sink = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(sink, format="PNG", compress_level=_COMPRESS_LEVEL)
    return sink.getvalue()


def thumbnail(pixels: Pixels, side_px: int = THUMBNAIL_PX) -> bytes:
    """A PNG of the picture whose longer side is at most `side_px`; never enlarged."""
    _check_pixels(pixels)
    height, width = pixels.shape[:2]
    scale = side_px / max(height, width)
    if scale >= 1:
        return encode_png(pixels)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.LANCZOS)
    return encode_png(np.array(small, dtype=np.uint8))


def sha256_hex(data: bytes) -> str:
    """The SHA-256 of a file's bytes: what a picture is called."""
    return hashlib.sha256(data).hexdigest()


def _check_header(image: Image.Image) -> None:
    width, height = image.size
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise UnreadableImage(f"{width}x{height} pixels; allowed are 1 to {MAX_PIXELS}")
    n_frames = getattr(image, "n_frames", 1)
    if n_frames != 1:
        raise UnreadableImage(f"{n_frames} pictures in one file; only still pictures are read")
    if image.mode not in _MODES:
        raise UnreadableImage(f"mode {image.mode}; allowed are {', '.join(_MODES)}")
    if image.mode == "I;16" and "transparency" in image.info:
        raise UnreadableImage("16-bit grey with a transparent colour")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I;16":
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _check_pixels(pixels: Pixels) -> None:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
        raise ValueError(f"a picture is a uint8 array of shape (H, W, 3), not {pixels.dtype} {pixels.shape}")
