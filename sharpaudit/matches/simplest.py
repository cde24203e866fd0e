"""The simplest text that still does something, by delta debugging over its words.

ddmin (Zeller and Hildebrandt, IEEE Transactions on Software Engineering 28, 2002): the words are cut into n parts; each
part alone is tried, then all words but each part. What still does it is cut on; where nothing does, n is doubled, up to
single words. What is left is minimal in one sense: no single one of its words can go. A shorter text of other words, or
in another order, may do it as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, pairwise

Words = tuple[str, ...]


def simplest(words: Sequence[str], first: Callable[[list[Words]], Words | None]) -> Words:
    """What is left of words that do it, in their order; never none.

    first: one of these candidates that does it, None where none does. It is asked for some of them again.
    """
    held, n = tuple(words), 2
    while len(held) > 1:
        parts = _cut(held, n)
        kept = first(parts)
        if kept is not None:
            held, n = kept, 2
            continue
        kept = first(_without(parts))
        if kept is None and n == len(held):
            break
        held, n = (held, 2 * n) if kept is None else (kept, n - 1)
        n = max(2, min(n, len(held)))
    return held


def without_one(words: Words) -> list[Words]:
    """The words without each of them; none of a single word."""
    return _without([(word,) for word in words]) if len(words) > 1 else []


def _without(parts: Sequence[Words]) -> list[Words]:
    """All parts but each."""
    return [tuple(chain(*parts[:i], *parts[i + 1 :])) for i in range(len(parts))]


def _cut(words: Words, n: int) -> list[Words]:
    """In n parts of nearly one size."""
    ends = [i * len(words) // n for i in range(n + 1)]
    return [words[a:b] for a, b in pairwise(ends)]
