"""Where a text stands among the captions of an index."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.operations.captions import standing
from sharpaudit.config import LAB
from sharpaudit.matches.index import ReferenceIndex, open_index


@pytest.fixture(scope="module")
def index() -> ReferenceIndex:
    return open_index(LAB / "emoji/references", "pixels-16")


@pytest.fixture(scope="module")
def held(index: ReferenceIndex) -> list[str]:
    return [one for table in index.tables for one in table.read(["caption"])["caption"].to_pylist() if one]


def words_of(caption: str) -> list[str]:
    return caption.casefold().replace(",", " ").replace("-", " ").split()


def test_a_caption_is_found_whatever_its_case_and_punctuation(index: ReferenceIndex, held: list[str]) -> None:
    own = held[0]
    found = standing(index, own.upper() + "!")
    assert (found.total, found.same) == (len(held), held.count(own))
    assert found.holding >= found.containing >= found.same > 0


def test_words_are_whole_and_their_order_is_told_apart(index: ReferenceIndex, held: list[str]) -> None:
    own = next(words_of(one) for one in held if len(words_of(one)) > 4)
    apart = " ".join([own[-1], own[0]])
    for text in (" ".join(own[1:3]), apart, own[0][:-1] or "zz"):
        found, asked = standing(index, text), text.split()
        several = [words_of(one) for one in held]
        assert found.holding == sum(set(asked) <= set(words) for words in several)
        assert found.containing == sum(f" {text} " in f" {' '.join(words)} " for words in several)
        assert len(found.examples) == min(3, len({one for one in held if set(asked) <= set(words_of(one))}))
        assert found.examples == sorted(found.examples, key=len)
    assert standing(index, apart).containing < standing(index, apart).holding


def test_of_punctuation_alone_nothing_is_told(index: ReferenceIndex) -> None:
    found = standing(index, "- !")
    assert (found.same, found.containing, found.holding, found.examples) == (0, 0, 0, [])
    assert np.isfinite(found.total)
