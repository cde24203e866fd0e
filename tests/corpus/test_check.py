from __future__ import annotations

import pytest

from sharpaudit.corpus.check import MAX_PROMPT_BYTES, check
from sharpaudit.errors import Status
from tests.support.strategies import BLANKS, BROKEN, TEXTS


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_hostile_text_is_taken_as_it_is(text):
    assert check(text.encode()) == (text, Status.OK)


@pytest.mark.parametrize("text", BLANKS)
def test_blank_is_empty(text):
    assert check(text.encode()) == (None, Status.EMPTY)


@pytest.mark.parametrize("raw", BROKEN)
def test_broken_bytes_are_refused(raw):
    assert check(raw) == (None, Status.INVALID_UTF8)


def test_missing_and_the_limit_of_length():
    assert check(None) == (None, Status.MISSING)
    assert check(b"x" * MAX_PROMPT_BYTES)[1] is Status.OK
    assert check(b"x" * (MAX_PROMPT_BYTES + 1)) == (None, Status.TOO_LONG)
