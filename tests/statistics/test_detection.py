"""AUC and TPR at an FPR against their definitions; intervals that hold and that do not pretend."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from sharpaudit.seeds import generator
from sharpaudit.statistics.detection import Group, auc, difference, figure, tpr_at_fpr
from sharpaudit.statistics.intervals import clopper_pearson

quick = settings(deadline=None, max_examples=80)
# Few distinct values, so that ties are common.
scores = st.lists(st.integers(-5, 5), min_size=1, max_size=30).map(lambda rows: np.array(rows, dtype=float))


@quick
@given(scores, scores)
def test_auc_is_the_share_of_pairs_in_order(memorised, harmless):
    pairs = (memorised[:, None] > harmless) + 0.5 * (memorised[:, None] == harmless)
    assert auc(memorised, harmless) == pytest.approx(pairs.mean())


@quick
@given(scores, scores)
def test_auc_of_swapped_groups_is_the_complement(memorised, harmless):
    assert auc(memorised, harmless) == pytest.approx(1 - auc(harmless, memorised))


@quick
@given(scores, scores, st.sampled_from([0.0, 0.01, 0.03, 0.1, 0.5, 1.0]))
def test_tpr_at_fpr_is_the_best_of_all_thresholds(memorised, harmless, fpr):
    thresholds = [-math.inf, *harmless, *memorised]
    allowed = [t for t in thresholds if (harmless > t).mean() <= fpr + 1e-9]
    assert tpr_at_fpr(fpr)(memorised, harmless) == max((memorised > t).mean() for t in allowed)


def test_one_percent_of_three_hundred_allows_three():
    harmless = np.arange(300.0)
    assert tpr_at_fpr(0.01)(np.array([296.5]), harmless) == 1
    assert tpr_at_fpr(0.01)(np.array([296.0]), harmless) == 0


def group(values, families=None):
    values = np.atleast_2d(np.asarray(values, dtype=float))
    names = [f"f{i}" for i in range(values.shape[1])] if families is None else families
    return Group(values, np.array(names))


def test_a_perfect_rate_keeps_the_uncertainty_of_its_families_and_of_its_threshold():
    """However far apart they are, the end of one is Clopper and Pearson's; nearer, the threshold's noise is added."""
    far = figure(tpr_at_fpr(0.01), group(np.arange(1e6, 1e6 + 60)), group(np.arange(2000)))
    assert (far.mean, far.interval.high) == (1.0, 1.0)
    assert far.interval.low == pytest.approx(clopper_pearson(60, 60).low, abs=1e-6)
    near = figure(tpr_at_fpr(0.01), group(np.linspace(1979.5, 1990, 60)), group(np.arange(2000)))
    assert near.mean == 1.0
    assert near.interval.low < 0.6


def test_a_false_positive_rate_that_the_harmless_prompts_cannot_show_bounds_nothing_from_below():
    """Of 50 harmless prompts none is above the threshold of 1% in 60% of draws, wherever it is."""
    assert figure(tpr_at_fpr(0.01), group(np.arange(100, 150)), group(np.arange(50))).interval.low == 0.0


def test_few_families_get_the_interval_of_so_many_however_many_prompts():
    families = [f"f{i // 10}" for i in range(100)]
    values = np.where(np.arange(100) < 50, 30000.0, -1.0)
    found = figure(tpr_at_fpr(0.01), group(values, families), group(np.arange(20000))).interval
    exact = clopper_pearson(5, 10)
    assert (found.low, found.high) == (pytest.approx(exact.low, abs=1e-6), pytest.approx(exact.high, abs=1e-6))


def test_a_threshold_that_was_set_beforehand_adds_no_noise():
    shares = group(np.arange(20) < 7)
    found = figure(lambda flagged_P, _: float(flagged_P.mean()), shares, group(np.zeros(3))).interval
    exact = clopper_pearson(7, 20)
    assert (found.low, found.high) == (pytest.approx(exact.low, abs=1e-6), pytest.approx(exact.high, abs=1e-6))


def test_families_of_different_sizes_are_worth_fewer():
    assert group(np.zeros(60), [f"f{i // 10}" for i in range(60)]).effective == 6
    # (50 + 10)^2 / (50^2 + 10).
    assert group(np.zeros(60), ["large"] * 50 + [f"f{i}" for i in range(10)]).effective == 1


@pytest.mark.parametrize(("mean", "sd"), [(2.33, 0.3), (2.33, 1.0)])
def test_the_interval_of_a_rate_covers_the_truth_where_its_threshold_is_estimated(mean, sd):
    """Taking the threshold for known holds in half of the draws of the first law; binomial standard error 1.5%."""
    truth, covered, known, repeats = norm.sf((norm.isf(0.01) - mean) / sd), 0, 0, 200
    for repeat in range(repeats):
        draw = generator("rate", repeat)
        found = figure(tpr_at_fpr(0.01), group(mean + sd * draw.standard_normal(49)), group(draw.standard_normal(500)))
        covered += found.interval.low <= truth <= found.interval.high
        taken = clopper_pearson(round(found.mean * 49), 49)
        known += taken.low <= truth <= taken.high
    assert covered >= 0.93 * repeats
    assert sd == 1 or known < 0.7 * repeats


def test_seeds_give_mean_spread_and_minimum():
    memorised, harmless = np.array([[2.0, 2.0], [0.0, 2.0]]), np.array([[1.0, 1.0], [1.0, 1.0]])
    found = figure(auc, group(memorised), group(harmless))
    assert (found.mean, found.minimum) == (0.75, 0.5)
    assert found.sd == pytest.approx(np.std([1, 0.5], ddof=1))


@pytest.mark.parametrize(("distance", "n"), [(1.0, 60), (3.3, 17)])
def test_the_interval_of_an_auc_covers_the_truth(distance, n):
    """Two normal distributions at distance d have AUC = Phi(d / sqrt 2), near 1 as well, where few pairs are astray."""
    truth, covered, repeats = norm.cdf(distance / math.sqrt(2)), 0, 200
    for repeat in range(repeats):
        draw = generator("coverage", repeat)
        found = figure(auc, group(draw.standard_normal(n) + distance), group(draw.standard_normal(500))).interval
        covered += found.low <= truth <= found.high
    assert covered >= 0.93 * repeats


def test_an_auc_of_one_is_not_known_exactly():
    found = figure(auc, group(np.arange(100, 117)), group(np.arange(50))).interval
    assert 0.8 < found.low < 0.97
    assert found.high == 1
    turned = figure(auc, group(-np.arange(100.0, 117)), group(np.arange(50))).interval
    assert (turned.low, turned.high) == (0, pytest.approx(1 - found.low))


def test_families_widen_an_interval():
    draw = generator("families")
    values = np.repeat(draw.standard_normal(60), 10)
    apart = figure(auc, group(values + 1), group(values)).interval
    families = [f"f{i // 10}" for i in range(600)]
    together = figure(auc, group(values + 1, families), group(values, families)).interval
    assert together.high - together.low > 2 * (apart.high - apart.low)


@pytest.mark.parametrize(
    ("values", "families"), [([[1.0, 2.0]], ["a"]), ([[]], []), ([[1.0, np.nan]], ["a", "b"]), ([1.0], ["a"])]
)
def test_scores_without_sense_are_refused(values, families):
    with pytest.raises(ValueError, match=r"shape|finite"):
        Group(np.array(values), np.array(families, dtype=str))


def test_groups_of_different_seeds_are_refused():
    with pytest.raises(ValueError, match="same seeds"):
        figure(auc, group(np.ones((2, 3))), group(np.ones((1, 3))))


def test_a_paired_difference_knows_that_both_saw_the_same_prompts():
    """Two detectors that differ by a constant shift are equal, though each alone is uncertain."""
    draw = generator("paired")
    memorised, harmless = draw.normal(1, 1, (1, 60)), draw.normal(0, 1, (1, 60))
    shifted = group(memorised + 7), group(harmless + 7)
    same = difference(auc, (group(memorised), group(harmless)), shifted, rate=False)
    assert (same.low, same.high) == (0, 0)
    worse = group(draw.normal(0, 1, (1, 60)))
    found = difference(auc, (group(memorised), group(harmless)), (worse, group(harmless)), rate=False, replicates=300)
    assert 0 < found.low < auc(memorised[0], harmless[0]) - auc(worse.values_SN[0], harmless[0]) < found.high
    swapped = difference(auc, (worse, group(harmless)), (group(memorised), group(harmless)), rate=False, replicates=300)
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low))


def test_a_paired_difference_of_other_prompts_is_refused():
    with pytest.raises(ValueError, match="same prompts"):
        difference(auc, (group([1, 2]), group([0])), (group([1, 2], ["b", "a"]), group([0])), rate=False)


def test_no_loss_seen_among_few_families_rules_out_only_a_large_one():
    same = group([[2.0] * 20]), group([[0.0, 1.0]])
    found = difference(tpr_at_fpr(0.01), same, same, rate=True)
    # The upper bound at 97.5% for none of 20.
    assert -found.low == found.high == pytest.approx(1 - 0.025 ** (1 / 20))


def test_a_difference_of_shares_ends_where_shares_do():
    none, every = (group([[value] * 2]) for value in (0.0, 2.0))
    harmless = group([[0.0, 1.0]])
    found = difference(tpr_at_fpr(0.01), (none, harmless), (every, harmless), rate=True)
    assert found.low == -1
    assert -1 < found.high == pytest.approx(-(0.025 ** (1 / 2)))
