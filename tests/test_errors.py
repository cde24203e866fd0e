"""Statuses have sentences, hints are near, and nothing hostile is printed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sharpaudit.errors import Status, nearest, printable


def test_every_status_has_a_sentence() -> None:
    for status in Status:
        assert status.describe().endswith(".")


def test_only_a_near_name_is_suggested() -> None:
    assert nearest("colum", ["column", "labels"]) == ' (did you mean "column"?)'
    assert nearest("zzz", ["column"]) == ""


@given(st.text())
def test_what_is_printed_is_printable_and_short(text: str) -> None:
    shown = printable(text, 50)
    assert shown.isprintable()
    assert len(shown) <= 50


def test_escape_and_bidi_characters_are_shown_as_codes() -> None:
    assert printable("a\x1b]52;\u202eb\n") == "a\\x1b]52;\\u202eb\\n"
