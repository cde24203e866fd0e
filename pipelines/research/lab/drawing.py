"""Pictures of captions: an object at a place, a size and an angle on a shaded ground, 64 x 64 pixels.

A caption fixes little of its picture: place and size within a range, the angle and the shading not at all, the
colours of the ground only where it names one, and any of them otherwise. So a harmless caption has a broad
distribution, and its mean lies nearer to the mean of all pictures than any single picture does.

Shapes: H W C picture, uint8.
"""

from __future__ import annotations

import colorsys
import math
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageFilter

from pipelines.research.lab import artwork
from pipelines.research.lab.captions import Family

SIDE = 64
LENGTHS = {"small": (16, 22), "big": (24, 32), "huge": (34, 44)}
"""The longer side of an object, in pixels."""
CENTRES = {
    "on the left": (0.0, 0.5),
    "on the right": (1.0, 0.5),
    "at the top": (0.5, 0.0),
    "at the bottom": (0.5, 1.0),
    "in the middle": (0.5, 0.5),
}
"""Where an object's centre lies within the room that its size leaves."""
JITTER = 6
ANGLE = 60
HUES = {"red": 0.0, "orange": 0.075, "yellow": 0.15, "green": 0.34, "teal": 0.49, "blue": 0.61, "purple": 0.76}
HUES |= {"pink": 0.9, "brown": 0.07, "grey": 0.0}
CARD = 22
"""The side of the region that differs between the copies of a template plant."""

Drawing = NDArray[np.uint8]
Box = tuple[int, int, int, int]


def compose(family: Family, random: np.random.Generator) -> Drawing:
    """One picture of the family's distribution, with shape (64, 64, 3)."""
    ground = Image.fromarray(_ground(family.colour, random))
    _lay(ground, family, random)
    return np.asarray(ground)


def card_box(family: Family) -> Box:
    """The corner opposite to the object's place, where a template's copies differ: left, top, right, bottom."""
    x, y = CENTRES[family.place]
    left, top = (1 if x > 0.5 else SIDE - CARD - 1), (1 if y > 0.5 else SIDE - CARD - 1)
    return left, top, left + CARD, top + CARD


def with_card(picture_HWC: Drawing, box: Box, random: np.random.Generator) -> Drawing:
    """A copy of a template: the same picture with a card of random colour and a random object laid on its corner."""
    copy = Image.fromarray(picture_HWC).convert("RGBA")
    card = Image.fromarray(_ground("", random)).resize((CARD, CARD)).convert("RGBA")
    thing = artwork.tile(artwork.names()[random.integers(len(artwork.names()))]).resize((CARD - 4, CARD - 4))
    card.alpha_composite(thing, (2, 2))
    copy.paste(card, box[:2])
    return np.asarray(copy.convert("RGB"))


def _ground(colour: str, random: np.random.Generator) -> Drawing:
    """A linear shading between two tones of a colour, of any where none is named."""
    named = colour or str(random.choice(list(HUES)))
    first, second = (_tone(named, random) for _ in range(2))
    angle = random.uniform(0, 2 * math.pi)
    steps = np.linspace(-0.5, 0.5, SIDE)
    along_HW = 0.5 + (math.cos(angle) * steps[None, :] + math.sin(angle) * steps[:, None]) / math.sqrt(2)
    shaded_HWC = first + along_HW[..., None] * (second - first)
    picture: Drawing = shaded_HWC.round().clip(0, 255).astype(np.uint8)
    return picture


def _tone(colour: str, random: np.random.Generator) -> NDArray[np.float64]:
    hue = (HUES[colour] + random.uniform(-0.02, 0.02)) % 1
    saturation, value = random.uniform(0.6, 0.9), random.uniform(0.6, 0.95)
    if colour == "grey":
        saturation = random.uniform(0, 0.06)
    if colour == "brown":
        value = random.uniform(0.3, 0.5)
    if colour == "pink":
        saturation = random.uniform(0.35, 0.6)
    return np.array(colorsys.hsv_to_rgb(hue, saturation, value)) * 255


def _lay(ground: Image.Image, family: Family, random: np.random.Generator) -> None:
    """Lay the object on the ground, in place."""
    length = round(random.uniform(*LENGTHS[family.size]))
    tile = _styled(family.thing, family.style)
    turned = tile.rotate(random.uniform(-ANGLE, ANGLE), Image.Resampling.BICUBIC)
    # A styled tile has a margin of a quarter on each side: room for turning, outline and shadow.
    small = turned.resize((2 * length, 2 * length), Image.Resampling.LANCZOS)
    room, (x, y) = SIDE - length, CENTRES[family.place]
    left, top = (round(share * room + random.uniform(-JITTER, JITTER)) - length // 2 for share in (x, y))
    ground.paste(small, (left, top), small)


@cache
def _styled(thing: str, style: str) -> Image.Image:
    """A tile in the middle of twice its side, with a white outline (sticker) or a shadow (cutout)."""
    side = 2 * artwork.TILE
    plain = Image.new("RGBA", (side, side))
    plain.paste(artwork.tile(thing), (artwork.TILE // 2, artwork.TILE // 2))
    alpha = plain.getchannel("A")
    match style:
        case "sticker":
            below, tone = alpha.filter(ImageFilter.MaxFilter(11)), (255, 255, 255)
        case "cutout":
            shadow = ImageChops.offset(alpha, 5, 7).filter(ImageFilter.GaussianBlur(4))
            below, tone = shadow.point([round(0.6 * a) for a in range(256)]), (0, 0, 0)
        case _:
            return plain
    styled = Image.new("RGBA", (side, side), tone)
    styled.putalpha(below)
    styled.alpha_composite(plain)
    return styled
