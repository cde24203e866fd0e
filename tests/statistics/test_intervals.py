"""Clopper-Pearson: scipy as oracle, tails that hold, ends that make sense."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from sharpaudit.statistics.intervals import Interval, clopper_pearson, upper_bound

quick = settings(deadline=None, max_examples=60)
counts = st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
levels = st.sampled_from([0.5, 0.9, 0.95, 0.99])


@quick
@given(counts, levels)
def test_the_interval_agrees_with_scipy(count, level):
    k, n = count
    theirs = binomtest(k, n).proportion_ci(confidence_level=level, method="exact")
    ours = clopper_pearson(k, n, level)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))
    assert ours.level == level


@quick
@given(counts, levels)
def test_failures_mirror_successes(count, level):
    k, n = count
    one, other = clopper_pearson(k, n, level), clopper_pearson(n - k, n, level)
    assert (one.low, one.high) == pytest.approx((1 - other.high, 1 - other.low))


@quick
@given(counts.filter(lambda c: c[0] < c[1]), levels)
def test_at_the_upper_bound_so_few_are_as_rare_as_the_level_says(count, level):
    k, n = count
    assert binom.cdf(k, n, upper_bound(k, n, level)) == pytest.approx(1 - level)


@pytest.mark.parametrize("n", [1, 8, 16, 300])
def test_none_of_n_has_a_closed_form(n):
    assert clopper_pearson(0, n).low == 0
    assert upper_bound(0, n, 0.95) == pytest.approx(1 - 0.05 ** (1 / n))


def test_nothing_tried_says_nothing():
    assert clopper_pearson(0, 0) == Interval(0.0, 1.0, 0.95)
    assert upper_bound(0, 0, 0.95) == 1


@pytest.mark.parametrize(("k", "n"), [(-1, 3), (4, 3), (0, -1)])
def test_counts_that_are_no_proportion_are_refused(k, n):
    with pytest.raises(ValueError, match="no proportion"):
        clopper_pearson(k, n)
    with pytest.raises(ValueError, match="no proportion"):
        upper_bound(k, n, 0.95)
