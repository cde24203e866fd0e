from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings

from sharpaudit.corpus.dedup import family_id, prompt_id
from tests.support.strategies import texts


@settings(deadline=None, max_examples=50)
@given(text=texts())
def test_the_id_is_the_hash_of_the_exact_text(text):
    assert prompt_id(text) == hashlib.sha256(text.encode()).digest()[:16].hex()
    assert len(family_id(text)) == len(prompt_id(text))


@pytest.mark.parametrize("other", ["a cat, a dog", "A CAT,A DOG!", "  a cat\n a\u00a0dog ", "“A cat” – a dog…"])
def test_case_punctuation_and_space_make_no_other_family(other):
    assert family_id(other) == family_id("a cat a dog")
    assert prompt_id(other) != prompt_id("a cat a dog")


@pytest.mark.parametrize("other", ["a cat a dog a", "a cata dog", "a dog a cat", "🐱"])
def test_other_words_make_another_family(other):
    assert family_id(other) != family_id("a cat a dog")


def test_punctuation_alone_is_a_family_by_its_exact_text():
    assert len({family_id(text) for text in ("?", "??", "!", "? ")}) == 4
    assert family_id("?") == family_id("?")


def test_a_named_family_goes_by_its_name():
    assert family_id("a cat", "pets") == family_id("a dog", "pets") != family_id("a dog", "zoo")
    assert family_id("x", "a cat") != family_id("a cat")
    assert family_id("a cat", " ") == family_id("a cat", None) == family_id("a cat")
