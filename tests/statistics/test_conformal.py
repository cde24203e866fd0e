"""p-values are ranks: valid for exchangeable scores, exact without ties, and exactly at alpha at the edge."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sharpaudit.statistics.conformal import (
    TOLERANCE,
    at_most,
    fpr_interval,
    least_calibration,
    p_values,
    rank_at,
    smallest_p,
)

quick = settings(deadline=None, max_examples=60)
# Few distinct values, so that ties are the rule.
tied = st.integers(-3, 3).map(float) | st.sampled_from([np.inf, -np.inf])
many = st.lists(tied, max_size=30).map(np.array)


@quick
@given(many, many)
def test_p_is_its_definition(scores, calibration):
    expected = [(1 + sum(c >= s for c in calibration)) / (len(calibration) + 1) for s in scores]
    assert p_values(scores, calibration).tolist() == expected


@quick
@given(st.lists(tied, min_size=1, max_size=30))
def test_exchangeable_scores_give_super_uniform_p(values):
    """Each value in turn against all others, which is what exchangeability averages over."""
    n = len(values) - 1
    p = [float(p_values(np.array([v]), np.delete(values, i))[0]) for i, v in enumerate(values)]
    shares = [np.mean(np.array(p) <= j / (n + 1) + TOLERANCE) for j in range(n + 2)]
    assert all(share <= j / (n + 1) + TOLERANCE for j, share in enumerate(shares))
    if len(set(values)) == len(values):
        assert shares == pytest.approx([j / (n + 1) for j in range(n + 2)])


def test_the_realised_rate_is_alpha_on_average_and_follows_its_law():
    rng, n, alpha = np.random.default_rng(0), 99, 0.05
    normal = stats.norm()
    rates = []
    for _ in range(2000):
        calibration = rng.standard_normal(n)
        # The exact rate of this calibration set: the mass above the lowest score that p <= alpha allows.
        steps = np.linspace(-6, 6, 4001)
        flagged = p_values(steps, calibration) <= alpha + TOLERANCE
        rates.append(normal.sf(steps[flagged].min()))
    assert np.mean(rates) == pytest.approx(alpha, abs=0.002)
    assert stats.kstest(rates, stats.beta(5, 95).cdf).pvalue > 1e-3
    interval = fpr_interval(alpha, n)
    outside = np.mean((np.array(rates) < interval.low) | (np.array(rates) > interval.high))
    assert outside == pytest.approx(0.05, abs=0.015)


@quick
@given(many, many, st.randoms())
def test_p_falls_with_the_score_and_ignores_order_and_scale(scores, calibration, random):
    p = p_values(scores, calibration)
    assert (np.diff(p[np.argsort(scores)]) <= 0).all()
    shuffled = np.array(random.sample(list(calibration), len(calibration)))
    assert (p_values(scores, shuffled) == p).all()
    assert (p_values(np.exp(scores), np.exp(calibration)) == p).all()


def test_a_failed_row_has_no_p_and_leaves_the_others_alone():
    p = p_values(np.array([2.0, np.nan, 0.0]), np.array([1.0, 3.0]))
    assert np.isnan(p).tolist() == [False, True, False]
    assert p[[0, 2]].tolist() == [2 / 3, 1.0]


def test_a_failed_row_calibrates_nothing():
    with pytest.raises(ValueError, match="NaN"):
        p_values(np.array([1.0]), np.array([0.0, np.nan]))


@quick
@given(st.data(), st.integers(1, 10**6))
def test_a_rank_exactly_at_alpha_counts(data, n):
    j = data.draw(st.integers(1, n))
    assert rank_at(j / (n + 1), n) == j
    assert rank_at((j + 0.5) / (n + 1), n) == j
    assert rank_at((j - 0.5) / (n + 1), n) == j - 1


@pytest.mark.parametrize("percent", range(1, 100))
def test_typed_percentages_are_exact(percent):
    # 0.29 * 100 is 28.999999999999996 in floats.
    assert rank_at(percent / 100, 99) == percent
    p = p_values(np.arange(100.0), np.arange(99.0) + 0.5)
    assert np.sum(p <= percent / 100 + TOLERANCE) == percent


@pytest.mark.parametrize(("n", "percent"), [(99, 3.0), (300, 2.1), (999, 1.6)])
def test_the_95th_percentiles_known_from_simulation(n, percent):
    # Of a two-sided interval at 90% the upper end is the 95th percentile.
    assert round(100 * fpr_interval(0.01, n, level=0.9).high, 1) == percent


@quick
@given(st.floats(0.001, 0.999), st.integers(0, 5000))
def test_the_interval_brackets_the_mean_of_its_law(alpha, n):
    interval, k = fpr_interval(alpha, n), rank_at(alpha, n)
    assert 0 <= interval.low <= interval.high <= 1
    assert k / (n + 1) <= alpha + TOLERANCE
    if k:
        law = stats.beta(k, n + 1 - k)
        assert law.cdf(interval.high) - law.cdf(interval.low) == pytest.approx(0.95)
        assert law.cdf(interval.low) == pytest.approx(0.025)


def test_too_few_calibrators_can_flag_nothing_and_alpha_one_flags_all():
    nothing, everything = fpr_interval(0.01, 98), fpr_interval(1.0, 98)
    assert (nothing.low, nothing.high) == (0, 0)
    assert (everything.low, everything.high) == (1, 1)
    assert smallest_p(98) > 0.01


@pytest.mark.parametrize("n", [0, 1, 99])
def test_the_smallest_p_is_that_of_an_unbeaten_score(n):
    assert p_values(np.array([np.inf]), np.zeros(n)).tolist() == [smallest_p(n)]


@pytest.mark.parametrize("alpha", [0.5, 0.3, 0.1, 0.07, 0.05, 0.02, 0.01, 1 / 3, 1 / 49, 0.001])
def test_the_least_calibration_set_is_the_first_that_can_flag(alpha: float) -> None:
    n = least_calibration(alpha)
    assert rank_at(alpha, n) == 1
    assert rank_at(alpha, n - 1) == 0
    assert at_most(np.array([smallest_p(n), smallest_p(n - 1), np.nan]), alpha).tolist() == [True, False, False]
