"""q-values: Benjamini and Hochberg over what was tested, one hypothesis a family."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

from sharpaudit.statistics.conformal import p_values
from sharpaudit.statistics.fdr import family_q_values, q_values

quick = settings(deadline=None, max_examples=60)
probabilities = st.sampled_from([0.001, 0.01, 0.02, 0.5, 1.0]) | st.floats(0, 1)
p_lists = st.lists(probabilities, max_size=30).map(np.array)
named = st.lists(st.tuples(probabilities | st.just(np.nan), st.sampled_from("abcde")), max_size=30)


def split(pairs):
    return np.array([p for p, _ in pairs], dtype=float), np.array([f for _, f in pairs], dtype=object)


@quick
@given(p_lists.filter(len))
def test_q_agrees_with_scipy(p):
    assert q_values(p) == pytest.approx(false_discovery_control(p))


@quick
@given(p_lists, st.integers(0, 5), st.randoms())
def test_failed_rows_are_no_hypotheses_and_order_does_not_matter(p, failed, random):
    with_failed = np.concatenate([p, np.full(failed, np.nan)])
    order = np.array(random.sample(range(len(with_failed)), len(with_failed)), dtype=int)
    back = np.empty(len(order))
    back[order] = q_values(with_failed[order])
    assert back == pytest.approx(np.concatenate([q_values(p), np.full(failed, np.nan)]), nan_ok=True)


@quick
@given(p_lists)
def test_q_is_never_below_p_and_keeps_its_order(p):
    q = q_values(p)
    assert (q >= p - 1e-15).all()
    assert (q <= 1).all()
    assert (np.diff(q[np.argsort(p, kind="stable")]) >= 0).all()


@quick
@given(p_lists)
def test_families_of_one_are_plain_hypotheses(p):
    assert family_q_values(p, np.arange(len(p))).tolist() == q_values(p).tolist()


@quick
@given(named)
def test_family_q_is_its_definition(pairs):
    p, families = split(pairs)
    members = {f: [v for v, g in pairs if g == f and not np.isnan(v)] for f in set(families)}
    tested = {f: min(1.0, len(v) * min(v)) for f, v in members.items() if v}
    q = dict(zip(tested, q_values(np.array(list(tested.values()))), strict=True))
    expected = [np.nan if np.isnan(v) else q[f] for v, f in pairs]
    assert family_q_values(p, families) == pytest.approx(np.array(expected), nan_ok=True)


def test_one_family_of_many_is_one_hypothesis():
    p = np.full(500, 0.001)
    p[7] = 0.0001
    assert family_q_values(p, np.full(500, "same", dtype=object)) == pytest.approx(np.full(500, 0.05))


def test_names_that_differ_by_a_trailing_nul_are_two_families():
    assert family_q_values(np.array([0.01, 0.9]), np.array(["a", "a\0"], dtype=object)).tolist() == [0.02, 0.9]


def test_nothing_tested_gives_nothing():
    assert q_values(np.empty(0)).tolist() == []
    assert np.isnan(family_q_values(np.full(2, np.nan), np.array(["a", "b"], dtype=object))).all()


def test_the_discovery_rate_holds_with_one_calibration_set_and_copied_prompts():
    """190 harmless families, 10 memorised ones, every family three times over: copies must not buy discoveries."""
    rng, rate = np.random.default_rng(1), 0.2
    families = np.repeat(np.arange(200), 3)
    false, power = [], []
    for _ in range(400):
        score = rng.standard_normal(200) + np.where(np.arange(200) < 10, 5.0, 0.0)
        p = p_values(np.repeat(score, 3), rng.standard_normal(999))
        found = family_q_values(p, families) <= rate
        false.append(np.sum(found & (families >= 10)) / max(1, found.sum()))
        power.append(found[families < 10].mean())
    assert np.mean(power) > 0.5
    # The standard error of the mean is below 0.01.
    assert np.mean(false) <= rate + 0.02
