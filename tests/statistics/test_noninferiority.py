"""Non-inferiority: ends of intervals against their definitions, and a rule that refuses what is worse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm, spearmanr

from pipelines.bench.exactness import FPR, LEAST_POSITIVES, LEVEL, RATE_MARGIN, compared
from pipelines.bench.lines import unmet
from pipelines.bench.noninferiority import Passed, bench_lines, markdown, simulate
from sharpaudit.seeds import generator
from sharpaudit.statistics.intervals import upper_bound
from sharpaudit.statistics.noninferiority import paired_low, rank_correlation, rank_correlation_low


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 200), st.data())
def test_the_score_interval_ends_where_the_score_test_rejects(n, data):
    """The restricted maximum of the likelihood, found by brute force."""
    lost = data.draw(st.integers(0, n))
    gained = data.draw(st.integers(0, n - lost))
    low = paired_low(lost, gained, n, 0.95)
    assert -1 <= low <= (gained - lost) / n
    if low == -1:
        return
    p_lost = np.linspace(max(0.0, -low), (1 - low) / 2, 200_001)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = [np.where(k, k * np.log(p), 0.0) for k, p in ((lost, p_lost), (gained, p_lost + low))]
        likelihood = terms[0] + terms[1] + (n - lost - gained) * np.log(np.maximum(1 - 2 * p_lost - low, 1e-300))
    p = p_lost[np.nanargmax(likelihood)]
    score = (gained - lost - n * low) / np.sqrt(n * (2 * p + low - low**2))
    assert score == pytest.approx(norm.ppf(0.95), abs=5e-3)


@pytest.mark.parametrize("n", [60, 106])
def test_a_loss_of_the_margin_is_refused_at_its_level(n):
    """The chance that so many of n pairs are lost, none gained, that the rule still passes them."""
    passing = [lost for lost in range(n) if paired_low(lost, 0, n, 0.95) > -0.05]
    assert binom.cdf(max(passing), n, 0.05) <= 0.05


def test_sixty_positives_are_the_fewest_that_can_show_it():
    assert upper_bound(0, LEAST_POSITIVES, LEVEL) < RATE_MARGIN
    assert upper_bound(0, LEAST_POSITIVES - 2, LEVEL) > RATE_MARGIN


def test_rank_correlation_is_spearmans_and_its_bound_respects_families():
    rng = generator("non-inferiority", "test")
    a = rng.integers(0, 40, size=200).astype(float)
    b = a + rng.integers(0, 12, size=200)
    alone = np.array([str(i) for i in range(200)])
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b)[0])
    low = rank_correlation_low(a, b, alone, 0.95, 200)
    assert low < rank_correlation(a, b)
    # Each prompt ten times over is no more evidence.
    many = [np.repeat(values, 10) for values in (a, b, alone)]
    assert rank_correlation_low(*many, 0.95, 200) == pytest.approx(low, abs=0.01)
    apart = rank_correlation_low(many[0], many[1], np.array([str(i) for i in range(2000)]), 0.95, 200)
    assert apart > low + 0.005
    assert np.isnan(rank_correlation(np.ones(5), np.arange(5.0)))


def precision(memorised, lost, n_harmless=500):
    """A rough form that ranks alike but for the `lost` best prompts, which fall to the lowest rank of all."""
    exact = np.concatenate([100 + np.arange(float(memorised)), np.linspace(0, 1, n_harmless)])
    rough = exact.copy()
    rough[memorised - lost : memorised] = -1 - np.arange(lost) / 100
    names = np.array([str(i) for i in range(len(exact))])
    return compared("x", rough, exact, np.arange(len(exact)) < memorised, names, 60)


def test_a_loss_is_refused_where_enough_positives_can_show_its_absence():
    none, one, many = (precision(106, lost, 8_000) for lost in (0, 1, 6))
    assert (none.offered, one.offered, many.offered) == (True, True, False)
    assert many.ranks_agree
    assert many.keeps_rate is False
    assert many.tpr == pytest.approx(100 / 106)
    # Of 17 positives nothing is said of rates: three of them lost is neither shown nor excused.
    assert precision(17, 3).keeps_rate is None
    assert precision(LEAST_POSITIVES, 0).keeps_rate is True
    assert precision(LEAST_POSITIVES - 1, 0).keeps_rate is None


def test_prompts_that_change_their_ranks_are_refused_whatever_the_rates():
    found = precision(17, 3)
    assert not found.ranks_agree
    assert not found.offered
    constant = compared("x", np.ones(200), np.arange(200.0), np.arange(200) < 20, np.arange(200).astype(str), 50)
    assert not constant.offered


def test_a_metric_with_nothing_to_lose_says_nothing_of_rates():
    values = np.concatenate([np.full(80, -1.0) - np.arange(80), np.arange(200.0)])
    found = compared("x", values, values, np.arange(280) < 80, np.arange(280).astype(str), 50)
    assert (found.tpr_float32, found.keeps_rate, found.offered) == (0, None, True)


def test_what_is_worse_must_not_pass_and_what_is_equal_must():
    cases = [("equal", 106, 30), ("loses the margin of TPR", 106, 20), ("loses the margin of TPR", 17, 100)]
    found = [Passed(case, positives, 1000, passed, 100) for case, positives, passed in cases]
    missed = unmet(list(bench_lines(found)), [])
    assert [text.split()[0] for text in missed] == [
        "noninferiority.equal.positives_106.high",
        "noninferiority.loses_the_margin_of_TPR.positives_106.low",
    ]
    assert "| equal | 106 | 1,000 | 0.9975 | 0 | 30.0%" in markdown(found)


@pytest.mark.chaos
def test_the_simulation_passes_its_own_goals():
    assert unmet(list(bench_lines(list(simulate(40, 60)))), []) == []


def test_the_rule_sees_a_worse_form_among_few_draws(monkeypatch):
    monkeypatch.setattr("pipelines.bench.noninferiority.SIZES", ((106, 1000),))
    monkeypatch.setattr(
        "pipelines.bench.noninferiority.CASES", {"equal": (0.9995, 0.0), "loses twice that": (0.9995, 0.2)}
    )
    found = {one.case: one.passed for one in simulate(6, 30)}
    assert found["loses twice that"] == 0
    assert found["equal"] >= 4
    assert FPR == 0.01
