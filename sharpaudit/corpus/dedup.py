"""Names of prompts: equal text, equal id; near-equal text, equal family.

`prompt_id` is the identity of a prompt: SHA-256 of its exact UTF-8, the first 16 bytes, in hex.
`family_id` is what must stay on one side of a split: a name that the user gives, or else the text with case
folded, punctuation (Unicode category P) read as a space and white space collapsed. Named families and families of
text never share an id.
"""

from __future__ import annotations

import hashlib
import unicodedata

from sharpaudit.seeds import digest


def prompt_id(prompt: str) -> str:
    """32 hex digits, equal exactly for equal prompts."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:32]


def family_id(prompt: str, family: str | None = None) -> str:
    """32 hex digits, equal for prompts of one family; a blank `family` names none."""
    if family is not None and names_family(family):
        return digest("family", "named", family)[:16].hex()
    normal = normal_text(prompt)
    # A prompt of punctuation alone would otherwise join every other such prompt.
    return (digest("family", "text", normal) if normal else digest("family", "exact", prompt))[:16].hex()


def names_family(family: str | None) -> bool:
    """Whether a value of the family column names one."""
    return family is not None and bool(family.strip())


def normal_text(prompt: str) -> str:
    """Case folded, punctuation read as a space, white space collapsed."""
    return " ".join(prompt.casefold().translate(_PUNCTUATION).split())


class _Punctuation(dict[int, int]):
    """A table for str.translate, filled as characters are met: punctuation to a space, all else to itself."""

    def __missing__(self, point: int) -> int:
        self[point] = ord(" ") if unicodedata.category(chr(point)).startswith("P") else point
        return self[point]


_PUNCTUATION = _Punctuation()
