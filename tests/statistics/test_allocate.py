"""A total shared over strata: all of it, within bounds, evenly, and growing without taking back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharpaudit.statistics.sampling import allocate

quick = settings(deadline=None, max_examples=100)
totals = st.integers(0, 200)
strata = st.lists(st.integers(0, 40), max_size=8)


@quick
@given(totals, strata)
def test_everything_is_drawn_and_no_stratum_gives_more_than_it_holds(total, sizes):
    shares = allocate(total, sizes)
    assert sum(shares) == min(total, sum(sizes))
    assert all(0 <= drawn <= size for drawn, size in zip(shares, sizes, strict=True))


@quick
@given(totals, strata)
def test_the_share_is_even_but_for_strata_that_are_drawn_whole(total, sizes):
    shares = allocate(total, sizes)
    open_ones = [drawn for drawn, size in zip(shares, sizes, strict=True) if drawn < size]
    assert all(drawn >= max(shares) - 1 for drawn in open_ones)


@quick
@given(totals, strata)
def test_one_more_draw_goes_to_one_stratum_and_takes_none_away(total, sizes):
    more = [b - a for a, b in zip(allocate(total, sizes), allocate(total + 1, sizes), strict=True)]
    assert sorted(more)[:-1] == [0] * max(0, len(sizes) - 1)
    assert sum(more) == (1 if total < sum(sizes) else 0)


def test_leftovers_of_small_strata_go_to_the_others():
    assert allocate(60, [2, 1000, 0, 1000, 5]) == [2, 27, 0, 26, 5]


@pytest.mark.parametrize(("total", "sizes"), [(-1, [3]), (3, [2, -1])])
def test_negative_counts_are_refused(total, sizes):
    with pytest.raises(ValueError, match="not negative"):
        allocate(total, sizes)
