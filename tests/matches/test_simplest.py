"""The simplest text: what is found does it, no single word of it can go, and no other answer is made up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sharpaudit.matches.simplest import Words, simplest


def asked(does: set[frozenset[int]], seen: list[Words]) -> object:
    """A test of candidates of numbered words: whether all of one of these sets are there."""

    def first(candidates: list[Words]) -> Words | None:
        seen.extend(candidates)
        there = (words for words in candidates if any(need <= set(map(int, words)) for need in does))
        return next(there, None)

    return first


@given(st.integers(1, 24), st.data())
def test_no_single_word_of_what_is_left_can_go(n: int, data: st.DataObject) -> None:
    needs = data.draw(st.sets(st.frozensets(st.integers(0, n - 1), max_size=6), min_size=1, max_size=3))
    words, seen = tuple(map(str, range(n))), list[Words]()
    left = simplest(words, asked(needs, seen))  # type: ignore[arg-type]
    have = set(map(int, left))
    assert left
    assert any(need <= have for need in needs)
    assert list(left) == sorted(left, key=int)
    if len(left) > 1:
        assert not any(need <= have - {one} for need in needs for one in have)
    assert all(words for words in seen)


@given(st.integers(1, 40), st.data())
def test_a_single_set_of_words_is_found_whatever_stands_between_them(n: int, data: st.DataObject) -> None:
    need = data.draw(st.frozensets(st.integers(0, n - 1), min_size=1, max_size=5))
    seen: list[Words] = []
    left = simplest(tuple(map(str, range(n))), asked({need}, seen))  # type: ignore[arg-type]
    assert set(map(int, left)) == need
    assert len(set(seen)) <= n * n + 3 * n


def test_where_nothing_shorter_does_it_all_words_stay() -> None:
    assert simplest(("a", "b", "c"), lambda _: None) == ("a", "b", "c")
    assert simplest(("a",), lambda _: None) == ("a",)
