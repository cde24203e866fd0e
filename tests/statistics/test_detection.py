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


def test_a_perfect_rate_keeps_the_uncertainty_of_its_families():
    found = figure(tpr_at_fpr(0.01), group(np.arange(100, 160)), group(np.arange(60)), rate=True)
    assert (found.mean, found.interval) == (1.0, clopper_pearson(60, 60))


def test_few_families_get_an_exact_interval_however_many_prompts():
    families = [f"f{i // 10}" for i in range(100)]
    values = np.where(np.arange(100) < 50, 300.0, -1.0)
    found = figure(tpr_at_fpr(0.01), group(values, families), group(np.arange(200)), rate=True)
    assert found.interval == clopper_pearson(5, 10)


def test_seeds_give_mean_spread_and_minimum():
    memorised, harmless = np.array([[2.0, 2.0], [0.0, 2.0]]), np.array([[1.0, 1.0], [1.0, 1.0]])
    found = figure(auc, group(memorised), group(harmless), rate=False, replicates=20)
    assert (found.mean, found.minimum) == (0.75, 0.5)
    assert found.sd == pytest.approx(np.std([1, 0.5], ddof=1))


def test_the_interval_of_an_auc_covers_the_truth():
    """Two normal distributions at distance d have AUC = Phi(d / sqrt 2)."""
    truth, covered, repeats = norm.cdf(1 / math.sqrt(2)), 0, 60
    for repeat in range(repeats):
        draw = generator("coverage", repeat)
        memorised, harmless = draw.standard_normal(60) + 1, draw.standard_normal(120)
        interval = figure(auc, group(memorised), group(harmless), rate=False, replicates=150).interval
        covered += interval.low <= truth <= interval.high
    assert covered >= 0.85 * repeats


def test_families_widen_an_interval():
    draw = generator("families")
    values = np.repeat(draw.standard_normal(60), 10)
    apart = figure(auc, group(values + 1), group(values), rate=False, replicates=200).interval
    families = [f"f{i // 10}" for i in range(600)]
    together = figure(auc, group(values + 1, families), group(values, families), rate=False, replicates=200).interval
    assert together.high - together.low > 2 * (apart.high - apart.low)


@pytest.mark.parametrize(
    ("values", "families"), [([[1.0, 2.0]], ["a"]), ([[]], []), ([[1.0, np.nan]], ["a", "b"]), ([1.0], ["a"])]
)
def test_scores_without_sense_are_refused(values, families):
    with pytest.raises(ValueError, match=r"shape|finite"):
        Group(np.array(values), np.array(families, dtype=str))


def test_groups_of_different_seeds_are_refused():
    with pytest.raises(ValueError, match="same seeds"):
        figure(auc, group(np.ones((2, 3))), group(np.ones((1, 3))), rate=False)


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
