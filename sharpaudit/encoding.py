"""Text that people give is UTF-8; that of another Unicode encoding is told from it, and never read as if it were.

UTF-16 of Latin letters is valid UTF-8, with a NUL beside each letter: read as UTF-8 it is prompts that no model
knows, and nothing warns. So a file is held against the marks of UTF-16 and UTF-32 (the byte order mark; without one,
NULs where those encodings put them) before any of it is believed. A NUL alone is content like any other letter.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

from sharpaudit.errors import UserError, printable

UTF8_BOM = b"\xef\xbb\xbf"
_BOMS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
"""Those of UTF-32 first: one of them begins as that of UTF-16 does."""
_CANDIDATES = ("UTF-32LE", "UTF-32BE", "UTF-16LE", "UTF-16BE")
_BETWEEN_NULS = re.compile(rb"(?:[^\0]\0{1,3}){8}|(?:\0{1,3}[^\0]){8}")
STRANGE = 0.02
"""Share of characters that text may hold and no text is expected to: unassigned, for private use, control."""
SCRIPT = 0.7
"""Share of letters whose first byte is that of the text's alphabet, below a space, or of the signs of all, a NUL."""


def other_unicode(head: bytes) -> str | None:
    """The encoding that the first bytes of a file are in, as `iconv` names it, where that is UTF-16 or UTF-32."""
    for bom, name in _BOMS.items():
        if head.startswith(bom):
            return name
    # Without NUL there is no line end in these encodings. What announces itself as UTF-8 is believed.
    if b"\0" not in head or head.startswith(UTF8_BOM) or (not head.isascii() and _is_utf8(head)):
        return None
    return next((name for name in _CANDIDATES if _reads_as(head, name)), None)


def between_nuls(text: bytes) -> bool:
    """Whether letters and NULs take turns: a line of UTF-16 in a file that did not begin so, or read in as bytes."""
    return _BETWEEN_NULS.search(text) is not None


def refusal(name: str, encoding: str) -> UserError:
    """What is said of a file in another encoding; name: as it shall stand in the line."""
    return UserError(
        f"{name}: the text is in {encoding}, which is not read: save it as UTF-8, for instance by "
        f"`iconv -f {encoding} -t UTF-8 OLD > NEW`"
    )


def decoded(raw: bytes, name: str) -> str:
    """The text of a small file, without a byte order mark. Raises UserError for UTF-16 and UTF-32, UnicodeDecodeError
    for what is no UTF-8 otherwise."""
    encoding = other_unicode(raw)
    if encoding is not None:
        raise refusal(printable(name), encoding)
    return raw.removeprefix(UTF8_BOM).decode()


def _is_utf8(head: bytes) -> bool:
    """Whether every byte stands as in UTF-8; the last character may be cut."""
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return True


def _reads_as(head: bytes, encoding: str) -> bool:
    """Whether the bytes are text in that encoding, and more so than in UTF-8."""
    width = 4 if encoding.startswith("UTF-32") else 2
    text = head.decode(encoding, errors="replace")
    if len(head) % width or sum(map(_is_strange, text)) > STRANGE * len(text):
        return False
    if width == 4:
        return True
    scripts, signs = (head[1::2], head[::2]) if encoding.endswith("LE") else (head[::2], head[1::2])
    # Line ends have their NUL there. Those of UTF-8 stand where the alphabet would, or beside one.
    ends = text.count("\n")
    if b"\n" in head and 2 * ends <= signs.count(b"\n"):
        return False
    alphabets = Counter(byte for byte in scripts if byte < ord(" "))
    shared, own = alphabets.pop(0, 0), max(alphabets.values(), default=0)
    # Writing of many signs fills both bytes and is no UTF-8.
    return shared + own >= SCRIPT * len(scripts) or (not _is_utf8(head) and 2 * ends > head.count(b"\n"))


def _is_strange(character: str) -> bool:
    return character == "\ufffd" or (
        unicodedata.category(character) in ("Cc", "Cn", "Co", "Cs") and character not in "\t\n\r"
    )
