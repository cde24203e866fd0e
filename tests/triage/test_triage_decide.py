"""Who is flagged: ranks against the calibrators, families as one hypothesis, failed rows kept and never decided."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings

from sharpaudit.errors import Status, UserError
from sharpaudit.statistics.fdr import family_q_values
from sharpaudit.triage.decide import decide
from tests.support.small_audits import METRIC, TIER, Prompt, audits, crowd, decided, named, settings_of, tables

quick = settings(deadline=None, max_examples=40)


def flagged(rows):
    return {name for name, row in rows.items() if row["flagged"]}


def has_score(prompt):
    return prompt.role != "fit" and prompt.status == "ok"


@quick
@given(audits())
def test_no_row_is_lost_and_the_corpus_keeps_its_order(prompts):
    corpus, scores = tables(prompts)
    made = decide(corpus, scores, settings_of())
    for column in ("prompt_id", "role"):
        assert made[column].to_pylist() == corpus[column].to_pylist()
    assert made["flagged"].null_count == made["status"].null_count == 0


@quick
@given(audits())
def test_p_is_the_rank_among_calibrators_for_those_who_are_decided(prompts):
    calibration = [p.value for p in prompts if p.role == "calibration" and has_score(p)]
    rows = decided(prompts)
    for p in prompts:
        expected = None
        if p.role in ("audit", "positive_control") and has_score(p):
            expected = (1 + sum(c >= p.value for c in calibration)) / (len(calibration) + 1)
        assert rows[p.name]["p_value"] == expected
        assert rows[p.name]["value"] == p.value


@quick
@given(audits())
def test_q_is_over_the_families_of_audited_prompts_alone(prompts):
    rows = decided(prompts)
    audited = [p for p in prompts if p.role == "audit" and has_score(p)]
    p_value = np.array([rows[p.name]["p_value"] for p in audited], dtype=float)
    q = family_q_values(p_value, np.array([p.family or p.name for p in audited], dtype=object))
    assert [rows[p.name]["q_value"] for p in audited] == q.tolist()
    assert all(rows[p.name]["q_value"] is None for p in prompts if p not in audited)


@quick
@given(audits())
def test_outcomes_are_kept_with_their_reason(prompts):
    rows = decided(prompts)
    for p in prompts:
        status, reason = rows[p.name]["status"], rows[p.name]["reason"]
        if p.role == "fit" or p.status == "ok":
            assert (status, reason) == ("ok", None)
        elif p.status is None:
            assert (status, reason) == ("quarantined", Status.QUARANTINED.describe())
        else:
            assert (status, reason) == (p.status, f"why {p.name} failed")
        without = p.role == "fit" or p.status is None
        assert (rows[p.name]["tier"], rows[p.name]["metric"]) == ((None, None) if without else (TIER, METRIC))


@quick
@given(audits())
def test_only_a_score_can_be_flagged(prompts):
    for by in ("p", "q"):
        rows = decided(prompts, settings_of(triage={"flag_by": by, "alpha": 0.9, "q": 0.9}))
        assert all(row["p_value"] is not None for row in rows.values() if row["flagged"])


@quick
@given(audits())
def test_rows_in_another_order_or_in_other_chunks_are_decided_alike(prompts):
    corpus, scores = tables(prompts)
    half = corpus.num_rows // 2
    cut = [type(t).from_batches(t.to_batches(max_chunksize=3), t.schema) for t in (corpus, scores)]
    turned = [t.take(list(range(t.num_rows))[::-1]) for t in (corpus, scores)]
    mixed = (corpus.take([*range(half, corpus.num_rows), *range(half)]), turned[1])
    by_id = [
        sorted(decide(c, s, settings_of()).to_pylist(), key=lambda r: r["prompt_id"])
        for c, s in ((corpus, scores), cut, turned, mixed)
    ]
    assert all(rows == by_id[0] for rows in by_id)


@pytest.mark.parametrize("percent", [1, 5, 7, 10, 29, 58])
def test_a_rank_exactly_at_alpha_is_flagged_and_the_next_is_not(percent):
    # Audited score i has p = (100 - i) / 100 against 99 calibrators in between.
    prompts = [*named("audit", range(100)), *named("calibration", np.arange(99) + 0.5)]
    rows = decided(prompts, settings_of(triage={"alpha": percent / 100}))
    assert flagged(rows) == {f"audit-{i}" for i in range(100 - percent, 100)}


def test_a_tie_with_the_highest_calibrator_is_no_flag_at_the_smallest_alpha():
    calibration = named("calibration", range(99))
    rows = decided([Prompt("tie", value=98.0), Prompt("above", value=math.nextafter(98, 99)), *calibration])
    assert (rows["tie"]["flagged"], rows["above"]["flagged"]) == (False, True)


def test_equal_scores_say_nothing():
    rows = decided([*named("audit", [1.0] * 50), *named("calibration", [1.0] * 200)])
    told = [row for row in rows.values() if row["role"] == "audit"]
    assert {(row["p_value"], row["q_value"], row["flagged"]) for row in told} == {(1.0, 1.0, False)}


def test_one_family_of_many_members_is_one_hypothesis():
    members = [Prompt(f"m{i}", value=float(i), family="same") for i in range(10)]
    rows = decided([*members, *named("calibration", np.linspace(0, 9, 999) - 0.001)])
    assert [rows[m.name]["q_value"] for m in members] == pytest.approx([10 / 1000] * 10)
    assert len({rows[m.name]["p_value"] for m in members}) == 10


def test_flags_by_q_follow_q_but_for_positive_controls_which_have_none():
    audited = [*named("audit", [9.0] * 5), *named("audit", np.zeros(95), prefix="low")]
    controls = named("positive_control", [9.0, 0.0])
    config = settings_of(triage={"flag_by": "q", "q": 0.1, "alpha": 0.01})
    prompts = [*audited, *controls, *named("calibration", np.linspace(-1, 1, 399))]
    # Five of a hundred at p = 1/400: q = 100 / (400 * 5) = 0.05.
    high = {p.name for p in audited[:5]}
    assert flagged(decided(prompts, config)) == {*high, controls[0].name}
    stricter = settings_of(triage={"flag_by": "q", "q": 0.04, "alpha": 0.01})
    assert flagged(decided(prompts, stricter)) == {controls[0].name}


def test_a_discovery_rate_exactly_at_q_is_flagged():
    config = settings_of(triage={"flag_by": "q", "q": 0.3})
    rows = decided([*named("audit", [9.0, 0.0, 0.0]), *named("calibration", np.zeros(9))], config)
    # 0.1 * 3 is 0.30000000000000004 in floats.
    assert rows["audit-0"]["q_value"] == pytest.approx(0.3)
    assert rows["audit-0"]["flagged"]


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("role", ["audit", "positive_control", "calibration"])
def test_an_undefined_score_is_a_failed_row_whatever_it_claims(role, value):
    broken = Prompt("broken", role, value)
    rows = decided([broken, *crowd(20)])
    assert (rows["broken"]["status"], rows["broken"]["reason"]) == ("non_finite", Status.NON_FINITE.describe())
    assert rows["broken"]["value"] is None
    others = {name: row for name, row in rows.items() if name != "broken"}
    assert others == decided(crowd(20))


def test_a_score_of_a_fit_prompt_is_not_read():
    prompts = crowd(5)
    corpus, scores = tables(prompts)
    swapped = corpus.set_column(1, "role", [["fit" if p.name == "audit-0" else p.role for p in prompts]])
    row = decide(swapped, scores, settings_of()).to_pylist()[0]
    assert (row["value"], row["p_value"], row["status"]) == (None, None, "ok")


@pytest.mark.parametrize("status", ["non_finite", None])
def test_without_calibration_scores_there_is_no_decision(status):
    failed = [dataclasses.replace(p, status=status, value=None) for p in named("calibration", range(5))]
    for prompts in (named("audit", [1.0]), [*named("audit", [1.0]), *failed]):
        with pytest.raises(UserError, match="calibration"):
            decided(prompts)


def test_two_scores_of_one_prompt_are_refused():
    with pytest.raises(ValueError, match="two scores"):
        decided([Prompt("a", value=1.0), Prompt("a", value=2.0), *named("calibration", [0.0])])


def test_whoever_went_on_ranks_above_whoever_was_cleared():
    calibration = [dataclasses.replace(p, tier=1 + (i >= 95)) for i, p in enumerate(named("calibration", range(99)))]
    audited = [
        Prompt("cleared", value=1e6),
        Prompt("went on", value=-1.0, tier=2),
        Prompt("went far", value=98.5, tier=2),
        Prompt("failed", status="non_finite", tier=2),
    ]
    rows = decided([*calibration, *audited])
    assert {p.name: rows[p.name]["p_value"] for p in audited} == pytest.approx(
        {"cleared": 5 / 100, "went on": 5 / 100, "went far": 1 / 100, "failed": None}
    )
    assert (rows["went far"]["tier"], rows["went far"]["value"]) == (2, 98.5)
