"""Every method by its name, as it is offered, at a middle strength."""

from __future__ import annotations

from dataclasses import replace

from sharpaudit.errors import UserError, nearest, printable
from sharpaudit.mitigation.attention import Attention
from sharpaudit.mitigation.base import Method, Unmitigated
from sharpaudit.mitigation.delay import Delay
from sharpaudit.mitigation.embedding import Embedding
from sharpaudit.mitigation.insertion import Insertion
from sharpaudit.mitigation.noise import Noise
from sharpaudit.mitigation.sail import Sail

METHODS: dict[str, Method] = {
    "none": Unmitigated(),
    "sail": Sail(),
    "sail-paper": Sail(objective="paper"),
    "sail-release": Sail(objective="release", most_steps=10),
    "embedding": Embedding(),
    "attention": Attention(),
    "noise": Noise(),
    "delay": Delay(0.5),
    "delay-dynamic": Delay(None),
    "numbers": Insertion("number"),
    "repeats": Insertion("repeat"),
    "tokens": Insertion("token"),
}


def method(name: str, target: float | None = None) -> Method:
    """The method of a name; target: for those that stop at one. Raises UserError for a name that is unknown."""
    if name not in METHODS:
        hint = nearest(name, list(METHODS)) or f"; known are {', '.join(METHODS)}"
        raise UserError(f'no method of mitigation is called "{printable(name)}"{hint}')
    found = METHODS[name]
    return replace(found, target=target) if isinstance(found, Sail | Embedding) else found
