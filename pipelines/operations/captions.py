"""Where a text stands among the captions of an index: whether those who made the training set wrote it themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sharpaudit.corpus.dedup import normal_text
from sharpaudit.matches.index import ReferenceIndex

EXAMPLES = 3
"""Captions that are told."""


@dataclass(frozen=True)
class Captions:
    """total: references with a caption. same: that are the text but for case, punctuation and space; containing: in
    which it stands, word after word; holding: that have all of its words, wherever. Each counts those before it.
    examples: the shortest of them."""

    total: int
    same: int
    containing: int
    holding: int
    examples: list[str]


def standing(index: ReferenceIndex, text: str) -> Captions:
    """Where a text stands; nowhere if it is of punctuation alone."""
    normal = normal_text(text)
    words, total, same, containing, holding, shortest = set(normal.split()), 0, 0, 0, 0, list[str]()
    for caption in _captions(index):
        total += 1
        held = normal_text(caption)
        if not words or not words <= set(held.split()):
            continue
        holding += 1
        containing += f" {normal} " in f" {held} "
        same += normal == held
        shortest = sorted({*shortest, caption}, key=lambda one: (len(one), one))[:EXAMPLES]
    return Captions(total, same, containing, holding, shortest)


def _captions(index: ReferenceIndex) -> Iterator[str]:
    """Of its references, in their order; those that have none are left out."""
    for table in index.tables:
        with index.unchanged():
            for group in range(table.metadata.num_row_groups):
                held = table.read_row_group(group, columns=["caption"])["caption"]
                yield from filter(None, held.to_pylist())
