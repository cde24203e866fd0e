"""The bound on what the flags missed holds as often as it says, and its estimate is right on average."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import hypergeom

from sharpaudit.statistics.intervals import upper_bound
from sharpaudit.statistics.missed import Drawn, least_recall, missed

SIZES = (40, 160, 600, 1200, 2000)
MEMORISED = (12, 8, 3, 1, 0)
DRAWS = (12, 12, 12, 12, 12)


def simulated(rng, draws=DRAWS):
    """One control sample without replacement."""
    strata = zip(SIZES, MEMORISED, draws, strict=True)
    return [Drawn(size, n, int(rng.hypergeometric(bad, size - bad, n))) for size, bad, n in strata]


def test_one_stratum_is_a_proportion():
    told = missed([Drawn(1000, 50, 2)])
    assert told.total_high == pytest.approx(1000 * upper_bound(2, 50, 0.95))
    assert told.estimate == pytest.approx(40)


def test_every_stratum_is_bounded_at_its_share_of_the_level():
    told = missed([Drawn(size, 12, k) for size, k in zip(SIZES, (3, 1, 0, 0, 0), strict=True)])
    expected = [size * upper_bound(k, 12, 1 - 0.05 / 5) for size, k in zip(SIZES, (3, 1, 0, 0, 0), strict=True)]
    assert told.high == pytest.approx(expected)


@pytest.mark.parametrize("n", [12, 60, 300])
def test_where_one_stratum_holds_everything_its_bound_fails_as_rarely_as_it_says(n):
    """Exactly, for every number of memorised prompts in it: 1% of samples, where 5% would be too many for five."""
    size, others = 1000, [Drawn(0, 0, 0)] * 4
    bounds = np.array([missed([Drawn(size, n, k), *others]).total_high for k in range(n + 1)])
    at_most = [float(hypergeom(size, bad, n).pmf(np.arange(n + 1))[bounds < bad].sum()) for bad in range(size + 1)]
    assert max(at_most) <= 0.01
    assert max(at_most) > 0.002  # no wider than it must be


@pytest.mark.parametrize("draws", [DRAWS, (2, 5, 10, 30, 60)])
def test_the_bound_covers_and_the_estimate_has_no_bias(draws):
    rng, n = np.random.default_rng(0), 1500
    told = [missed(simulated(rng, draws)) for _ in range(n)]
    truth = sum(MEMORISED)
    assert np.mean([one.total_high >= truth for one in told]) >= 0.95
    estimates = [one.estimate for one in told]
    error = np.std(estimates) / np.sqrt(n)
    assert np.mean(estimates) == pytest.approx(truth, abs=4 * error)


def test_recall_is_bounded_in_as_many_audits():
    """Flags found 70 of the 94 memorised prompts; the bound must lie below that share."""
    rng = np.random.default_rng(1)
    lowest = [least_recall(70, missed(simulated(rng)).total_high) for _ in range(1000)]
    assert np.mean(np.array(lowest) <= 70 / (70 + sum(MEMORISED))) >= 0.95


def test_what_was_not_examined_counts_as_copied_in_the_bound_alone():
    told = missed([Drawn(100, 10, 1, unknown=2)])
    assert told.total_high == pytest.approx(100 * upper_bound(3, 10, 0.95))
    assert told.estimate == pytest.approx(100 * 1 / 8)


def test_a_stratum_that_was_not_looked_at_leaves_no_estimate_and_counts_whole():
    told = missed([Drawn(100, 10, 0), Drawn(30, 0, 0)])
    assert told.high[1] == 30
    assert told.estimate is None
    assert missed([Drawn(0, 0, 0)]).estimate == 0


def test_without_anything_memorised_recall_is_undefined():
    assert least_recall(0, 0.0) is None
    assert missed([]).total_high == 0
