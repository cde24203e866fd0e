"""The grammar of the lab's captions: planted and harmless prompts alike, so that wording gives nothing away.

A *family* is what a caption says: object, size, place, style and, in half of the templates, a colour of the
background. Wordings of one family say the same in other words. There are 7,200 families without a colour and
72,000 with one.
"""

from __future__ import annotations

import itertools
from dataclasses import astuple, dataclass

from pipelines.research.lab.artwork import names
from sharpaudit.lab.detectors import COLOURS

SIZES = ("small", "big", "huge")
PLACES = ("on the left", "on the right", "at the top", "at the bottom", "in the middle")
STYLES = ("drawing", "sticker", "cutout")
PLURALS = ("cherries", "grapes", "scissors")

PLAIN_WORDINGS = (
    "a {size} {style} of {thing} {place}",
    "{style} of {thing} {place}, {size}",
    "{thing} {place}, {size} {style}",
)
COLOUR_WORDINGS = (
    "a {size} {style} of {thing} {place}, {colour} background",
    "{style} of {thing} {place}, {size}, on {colour}",
    "{thing} {place}, {size} {style}, {colour} background",
)
N_WORDINGS = len(PLAIN_WORDINGS)


@dataclass(frozen=True)
class Family:
    """What a caption says. colour is empty where the background is not named."""

    thing: str
    size: str
    place: str
    style: str
    colour: str = ""

    @property
    def name(self) -> str:
        """One word per part: "fire-engine/big/at-the-top/sticker/red"."""
        return "/".join(part.replace(" ", "-") for part in astuple(self) if part)

    def caption(self, wording: int) -> str:
        """The family in one of N_WORDINGS wordings."""
        template = (COLOUR_WORDINGS if self.colour else PLAIN_WORDINGS)[wording]
        return template.format(
            size=self.size, style=self.style, place=self.place, colour=self.colour, thing=with_article(self.thing)
        )


def with_article(thing: str) -> str:
    """ "an owl", "a fire engine", "scissors"."""
    if thing in PLURALS:
        return thing
    return f"{'an' if thing[0] in 'aeio' or thing.startswith('um') else 'a'} {thing}"


def families(*, colour: bool) -> list[Family]:
    """Every family that names a colour, or every family that names none, in a fixed order."""
    grid = itertools.product(names(), SIZES, PLACES, STYLES, COLOURS if colour else ("",))
    return [Family(*parts) for parts in grid]
