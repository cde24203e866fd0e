"""UTF-16 and UTF-32 are told from UTF-8, whatever they write and with what marks; NULs alone do not make them."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sharpaudit.encoding import between_nuls, decoded, other_unicode
from sharpaudit.errors import UserError
from tests.support.strategies import prompt_bytes, texts

WRITINGS = {
    "Latin": "a red boat\na blue hat\n",
    "one short line": "cat\r\n",
    "accents": "café à la crème\r\nété\r\n",
    "typography": "“quoted” – text\n‘yes’\n",
    "Greek": "κόκκινο καράβι\nμπλε καπέλο\n",
    "Cyrillic": "красная лодка\nсиняя шляпа\n",
    "Hebrew": "סירה אדומה\nכובע כחול\n",
    "Arabic": "قارب أحمر\nقبعة زرقاء\n",
    "Devanagari": "लाल नाव\nनीली टोपी\n",
    "Gurmukhi": "ਲਾਲ ਕਿਸ਼ਤੀ\nਨੀਲੀ ਟੋਪੀ\n",
    "Thai": "เรือสีแดง\nหมวกสีฟ้า\n",
    "Chinese": "一只红色的小船在海上\n蓝色的帽子和绿色的鸟\n",
    "Japanese": "赤い船\n青い帽子\n",
    "Korean": "빨간 배\n파란 모자\n",
    "mixed": "東京 Tokyo station\n大阪 Osaka\n",
    "emoji": "🐱🐱\n🐶🐶\n",
}
ENCODINGS = {
    "utf-16-le": "UTF-16LE",
    "utf-16-be": "UTF-16BE",
    "utf-16": "UTF-16",
    "utf-32-le": "UTF-32LE",
    "utf-32-be": "UTF-32BE",
    "utf-32": "UTF-32",
}


@pytest.mark.parametrize("text", WRITINGS.values(), ids=WRITINGS)
def test_other_encodings_are_named_as_iconv_names_them(text):
    for encoding, name in ENCODINGS.items():
        assert other_unicode(text.encode(encoding)) == name
        assert other_unicode((text * 3000).encode(encoding)[: 1 << 16]) == name


@pytest.mark.parametrize("text", WRITINGS.values(), ids=WRITINGS)
def test_utf8_with_nuls_in_it_stays_utf8(text):
    plain = text.encode()
    for content in (plain, b"\0" + plain, b"a cat\0; a dog\n" + plain, plain + b"a\0b\n", plain * 500 + b"\0\0\0"):
        assert other_unicode(content) is None
        assert not between_nuls(content)


@given(prompts=st.lists(prompt_bytes(), min_size=1, max_size=8))
@example(prompts=[b"\b", b"\b", b"\b", b"\0"])
@example(prompts=[b"\0"] * 8)
def test_hostile_prompts_are_not_taken_for_another_encoding(prompts):
    assert other_unicode(b"prompt\n" + b"\n".join(b'"' + p.replace(b'"', b'""') + b'"' for p in prompts)) is None
    assert not any(map(between_nuls, prompts))


@given(text=texts().filter(lambda text: text.isascii() and len(text) >= 8 and "\0" not in text))
def test_letters_that_take_turns_with_nuls_are_seen_anywhere(text):
    for encoding in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"):
        assert between_nuls("é before ".encode() + text.encode(encoding))


def test_a_small_file_comes_as_text_without_its_mark():
    assert decoded("\ufeffa = 1".encode(), "x.toml") == decoded(b"a = 1", "x.toml") == "a = 1"
    assert decoded("\ufeff\ufeffa".encode(), "x.toml") == "\ufeffa"
    with pytest.raises(UserError, match=r"x\.toml: the text is in UTF-16, .*`iconv -f UTF-16 -t UTF-8"):
        decoded("a = 1".encode("utf-16"), "x.toml")
