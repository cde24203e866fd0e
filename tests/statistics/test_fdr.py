"""q-values: Benjamini and Hochberg over what was tested, one hypothesis a family."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import false_discovery_control

from sharpaudit.statistics.conformal import p_values
from sharpaudit.statistics.fdr import (
    calibration_needed,
    family_p_values,
    family_q_values,
    harmless_share,
    penalty,
    q_values,
)

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
    assert q_values(p, "benjamini-yekutieli") == pytest.approx(false_discovery_control(p, method="by"))


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
    tested = {f: min(len(v) * x / (i + 1) for i, x in enumerate(sorted(v))) for f, v in members.items() if v}
    for procedure in ("benjamini-hochberg", "benjamini-yekutieli"):
        paid = [min(1.0, x * penalty(len(members[f]), procedure)) for f, x in tested.items()]
        q = dict(zip(tested, q_values(np.array(paid), procedure), strict=True))
        expected = [np.nan if np.isnan(v) else q[f] for v, f in pairs]
        assert family_q_values(p, families, procedure) == pytest.approx(np.array(expected), nan_ok=True)


def test_one_family_of_many_is_one_hypothesis():
    """Five hundred prompts of one p are one prompt of that p; a single small one costs all members."""
    same = np.full(500, "same", dtype=object)
    assert family_q_values(np.full(500, 0.001), same) == pytest.approx(np.full(500, 0.001))
    one = np.where(np.arange(500) == 7, 0.0001, 0.9)
    assert family_q_values(one, same) == pytest.approx(np.full(500, 0.05))


@pytest.mark.parametrize("correlation", [0.0, 0.5, 1.0])
def test_the_p_of_a_family_holds_for_near_duplicates(correlation):
    """A family of twenty harmless prompts, independent or moving together; a calibration set for each draw."""
    rng, draws, members = np.random.default_rng(7), 4000, 20
    shared = np.sqrt(correlation) * rng.standard_normal((draws, 1))
    scores = shared + np.sqrt(1 - correlation) * rng.standard_normal((draws, members))
    calibration = rng.standard_normal((draws, 199))
    p = (1 + (calibration[:, :, None] >= scores[:, None, :]).sum(1)) / 200
    found = family_p_values(p.ravel(), np.repeat(np.arange(draws), members))[0]
    # Two standard errors of a rate of 5%.
    assert np.mean(found <= 0.05) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / draws)


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


def test_any_dependence_is_what_benjamini_and_yekutieli_pay_for():
    """Their worst case (2001, theorem 1.3): one p decides which share of all is small. Only the second rule holds."""
    rng, m, rate = np.random.default_rng(2), 50, 0.3
    false = {"benjamini-hochberg": 0, "benjamini-yekutieli": 0}
    draws = 4000
    for _ in range(draws):
        # j of the m hypotheses have p in ((j - 1) rate / m, j rate / m], with chances that make each p uniform.
        chances = np.append(rate / (np.arange(1, m + 1)), 0)
        chances[-1] = 1 - chances[:-1].sum()
        j = int(rng.choice(m + 1, p=np.maximum(chances, 0) / np.maximum(chances, 0).sum())) + 1
        p = rate + (1 - rate) * rng.random(m)
        if j <= m:
            p[rng.permutation(m)[:j]] = (j - rng.random(j)) * rate / m
        for procedure in false:
            false[procedure] += bool((q_values(p, procedure) <= rate).any())
    assert false["benjamini-hochberg"] / draws > rate + 0.1
    assert false["benjamini-yekutieli"] / draws <= rate + 0.02


def test_the_harmless_share_is_that_of_the_corpus():
    rng = np.random.default_rng(3)
    p = np.concatenate([rng.random(9_000), 0.05 * rng.random(1_000)])
    assert harmless_share(p) == pytest.approx(0.9, abs=0.03)
    assert harmless_share(np.append(p, np.nan)) == harmless_share(p)
    assert harmless_share(np.empty(0)) == harmless_share(np.ones(5)) == 1.0


@pytest.mark.parametrize("procedure", ["benjamini-hochberg", "benjamini-yekutieli"])
@pytest.mark.parametrize(("q", "prevalence", "m"), [(0.1, 0.01, 1000), (0.05, 0.004, 500), (0.2, 0.1, 40)])
def test_so_many_calibrators_are_needed_and_one_fewer_finds_nothing(procedure, q, prevalence, m):
    memorised = round(prevalence * m)
    score = np.where(np.arange(m) < memorised, 2.0, -1.0)
    n = calibration_needed(q, prevalence, penalty(m, procedure))
    for size, found in ((n, memorised), (n - 1, 0)):
        q_of = q_values(p_values(score, np.zeros(size)), procedure)
        assert int((q_of <= q + 1e-9).sum()) == found
