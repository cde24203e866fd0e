"""Prompts that break naive code, for property tests of every stage.

`TEXTS` are prompts that are valid text and not blank; `BLANKS` are blank; `BROKEN` are bytes that are not UTF-8.
`texts()` draws prompts an audit must accept exactly, `prompt_bytes()` draws anything that a file can hold.
"""

from __future__ import annotations

from hypothesis import strategies as st

TEXTS = {
    "emoji with joiners": "a family 👩‍👩‍👧‍👦 and a flag 🏳️‍🌈",
    "right to left": "צילום של חתול \u202e gnp.exe",
    "combining": "cafe\u0301 Z\u0351\u036b\u0343a\u0334l\u0321go",
    "nul": "a cat\x00; a dog",
    "line breaks": "one\ntwo\r\nthree\rfour\u2028five",
    "csv": 'he said "no, never"; 5" pipe\t|\\"',
    "unclosed quote": '"a cat',
    "formula": "=cmd|' /C calc'!A0",
    "markup": "<script>alert(1)</script><img src=x onerror=alert(1)> {{7*7}} ${x}",
    "sql": "'); DROP TABLE corpus; --",
    "path": "../../etc/passwd",
    "terminal": "\x1b]52;c;aGk=\x07\x1b[31mred",
    "punctuation": "?!...",
    "byte order mark": "\ufeffa cat",
    "zero width": "\u200b",
    "astral": "𝕬 𓀀 \U0010ffff",
    "spaces": "  a   cat\t ",
    "long": "very " * 5000 + "long",
    "looks like null": "null",
    "looks like a number": "1e309",
}
BLANKS = ("", " ", "\t \u00a0\u3000", "\n", "\r\n")
BROKEN = (b"\xff\xfe", b"caf\xe9", b"\xed\xa0\x80", b"a\xc0\xafb", b"\xf4\x90\x80\x80", b"cut \xe2\x82")


def texts() -> st.SearchStrategy[str]:
    """Valid prompts that are not blank."""
    alphabet = st.characters(exclude_categories=["Cs"])
    sharp = st.text(st.sampled_from('",;\t|\\\r\n\x00 a\u00e9{}[]'), min_size=1, max_size=12)
    drawn = st.one_of(st.sampled_from(list(TEXTS.values())), st.text(alphabet, min_size=1, max_size=40), sharp)
    return drawn.filter(lambda text: bool(text.strip()))


def prompt_bytes() -> st.SearchStrategy[bytes]:
    """Any content of a prompt field: valid, blank or not UTF-8."""
    valid = st.one_of(texts(), st.sampled_from(BLANKS)).map(str.encode)
    return st.one_of(valid, st.sampled_from(BROKEN), st.binary(max_size=12))
