"""Captions of a corpus's style that the corpus does not hold: its words put together anew.

A user who has no harmless prompts has captions in plenty. Each candidate starts as one of them and every word is drawn
again, in a random order and twice over, from the words that stand somewhere in the corpus between the same two
neighbours (a Gibbs sampler of its trigrams). So wording, length and punctuation stay those of the corpus, while what
the caption as a whole asks for was, most likely, never a caption. Where too few words have a substitute, two captions
are joined at a word that both have.

Candidates are not known to be harmless. A recombined caption may be near one that is memorised, and calibration prompts
of that sort only make p-values larger; a run generates those that stand at its flag line and says which copy.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sharpaudit.corpus.dedup import family_id
from sharpaudit.errors import UserError
from sharpaudit.seeds import generator

SWEEPS = 2
LEAST_CHANGED = 0.25
"""Of the words of a caption, at least one; with fewer it would be the old caption in other words."""
ATTEMPTS = 40
"""For each candidate that is wanted; a small corpus has few combinations."""
MAX_CAPTIONS = 200_000
"""Captions that substitutes are learned from; of a larger corpus a random sample."""
START, END = "\0start", "\0end"
"""No caption holds them: captions are split at white space, and NUL would be inside a word."""

Place = tuple[str, str]


@dataclass(frozen=True)
class Candidate:
    """changed: the share of its words that are not those of the caption it began as."""

    text: str
    changed: float


def recombine(captions: Sequence[str], n: int, seed: int) -> list[Candidate]:
    """Up to n captions of families that `captions` has none of, each of another family, in a drawn order.

    Fewer than n where the corpus has no more combinations. Raises UserError where it has none at all.
    """
    rng = generator(seed, "recombine")
    words = [caption.split() for caption in captions]
    if len(words) > MAX_CAPTIONS:
        words = [words[i] for i in rng.choice(len(words), MAX_CAPTIONS, replace=False)]
    taken = {family_id(caption) for caption in captions}
    found: list[Candidate] = []
    for candidate in _drawn(words, rng, ATTEMPTS * n):
        family = family_id(candidate.text)
        if family not in taken:
            taken.add(family)
            found.append(candidate)
            if len(found) == n:
                break
    if not found:
        raise UserError(
            f"{len(captions):,} captions share too few words to be recombined; write harmless prompts by hand"
        )
    return found


def _drawn(words: Sequence[list[str]], rng: np.random.Generator, attempts: int) -> Iterator[Candidate]:
    substitutes, holders = _learned(words)
    for _ in range(attempts):
        old = words[int(rng.integers(len(words)))]
        new = _resampled(old, substitutes, rng)
        if _changed(old, new) < LEAST_CHANGED:
            new = _joined(old, words, holders, rng)
        if _changed(old, new) >= LEAST_CHANGED:
            yield Candidate(" ".join(new), _changed(old, new))


def _learned(words: Sequence[list[str]]) -> tuple[dict[Place, list[str]], dict[str, list[int]]]:
    """The words seen between two neighbours, as often as they were seen; the captions that hold a word."""
    substitutes: dict[Place, list[str]] = defaultdict(list)
    holders: dict[str, list[int]] = defaultdict(list)
    for i, caption in enumerate(words):
        framed = [START, *caption, END]
        for left, word, right in zip(framed, framed[1:], framed[2:], strict=False):
            substitutes[left, right].append(word)
        for word in dict.fromkeys(caption):
            holders[word].append(i)
    return substitutes, holders


def _resampled(old: list[str], substitutes: dict[Place, list[str]], rng: np.random.Generator) -> list[str]:
    framed = [START, *old, END]
    for _ in range(SWEEPS):
        for i in rng.permutation(len(old)) + 1:
            known = substitutes.get((framed[i - 1], framed[i + 1]))
            if known:
                framed[i] = known[int(rng.integers(len(known)))]
    return framed[1:-1]


def _joined(
    old: list[str], words: Sequence[list[str]], holders: dict[str, list[int]], rng: np.random.Generator
) -> list[str]:
    """The beginning of one caption and the end of another, where both have the same word; else the old caption."""
    for i in rng.permutation(len(old)):
        others = holders[old[i]]
        other = words[others[int(rng.integers(len(others)))]]
        j = other.index(old[i])
        if other[j + 1 :] != old[i + 1 :]:
            return [*old[: i + 1], *other[j + 1 :]]
    return old


def _changed(old: list[str], new: list[str]) -> float:
    """The share of the new words that the old caption does not have at that place."""
    same = sum(a == b for a, b in zip(old, new, strict=False))
    return 1 - same / max(1, len(new))
