"""What is generated: every flag, every positive control, and a control sample whose probabilities are true."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharpaudit.seeds import rank_hash
from sharpaudit.statistics.sampling import allocate
from sharpaudit.tables.schemas import TRIAGE
from sharpaudit.triage.select import EDGES, LABELS
from tests.support.small_audits import Prompt, audits, crowd, decided, named, settings_of, triaged

quick = settings(deadline=None, max_examples=40)
CROWD = crowd(300)


def rows_of(prompts, **config):
    return triaged(prompts, settings_of(**config)).to_pylist()


def names_of(rows, purpose):
    return {row["prompt_id"] for row in rows if row["selected_for"] == purpose}


def strata_of(rows):
    found = defaultdict(list)
    for row in rows:
        if row["stratum"] is not None:
            found[row["stratum"]].append(row)
    return found


@quick
@given(audits())
def test_the_table_has_its_schema_and_what_was_decided_stands_in_it(prompts):
    table = triaged(prompts)
    assert table.schema.equals(TRIAGE.schema, check_metadata=True)
    table.validate(full=True)
    for field in ("selected_for", "n_samples", "flagged", "status"):
        assert table[field].null_count == 0
    for row, before in zip(table.to_pylist(), decided(prompts).values(), strict=True):
        del before["at_line"], before["apart"], before["family_id"]
        assert {name: row[name] for name in before} == before


@quick
@given(audits(), st.integers(0, 12))
def test_who_is_selected_for_what(prompts, controls):
    config = settings_of(triage={"alpha": 0.5, "controls": controls}, samples={"band_prompts": 3})
    at_line = {name: row["at_line"] for name, row in decided(prompts, config).items()}
    for row in triaged(prompts, config).to_pylist():
        if row["role"] == "fit":
            assert row["selected_for"] in ("band", "none")
        elif row["status"] != "ok":
            assert row["selected_for"] == "none"
        elif row["role"] == "calibration":
            assert row["selected_for"] == ("calibration_check" if at_line[row["prompt_id"]] else "none")
        elif row["role"] == "positive_control":
            assert row["selected_for"] == "positive_control"
        else:
            assert row["selected_for"] in (("flagged",) if row["flagged"] else ("control", "none"))


def test_every_selected_prompt_gets_the_same_number_of_pictures():
    prompts = [*CROWD, *named("audit", [9.0], prefix="high"), *named("positive_control", [9.0, -9.0])]
    rows = rows_of(prompts, samples={"per_prompt": 7, "band_prompts": 4})
    found = {(row["selected_for"], row["n_samples"]) for row in rows}
    purposes = ("flagged", "positive_control", "calibration_check", "control", "band")
    assert found == {*((purpose, 7) for purpose in purposes), ("none", 0)}


@quick
@given(audits())
def test_strata_hold_every_unflagged_audited_p_between_its_edges(prompts):
    between = dict(zip(LABELS, zip((0, *EDGES), EDGES, strict=False), strict=True))
    for row in rows_of(prompts, triage={"alpha": 0.3}):
        drawable = row["role"] == "audit" and row["p_value"] is not None and not row["flagged"]
        assert (row["stratum"] is not None) == drawable
        if drawable:
            low, high = between[row["stratum"]]
            assert low < row["p_value"] <= high


def test_a_p_exactly_on_an_edge_belongs_below_it():
    prompts = [*named("audit", range(100)), *named("calibration", np.arange(99) + 0.5)]
    sizes = Counter(row["stratum"] for row in rows_of(prompts, triage={"flag_by": "q", "q": 0.001}))
    assert sizes[None] == 99
    assert [sizes[label] for label in LABELS] == [1, 4, 15, 30, 50]


@quick
@given(audits(), st.integers(0, 12))
def test_probabilities_are_drawn_over_size_and_weights_restore_each_stratum(prompts, controls):
    rows = rows_of(prompts, triage={"alpha": 0.3, "controls": controls})
    strata = strata_of(rows)
    shares = allocate(controls, [len(strata[label]) for label in LABELS])
    for label, share in zip(LABELS, shares, strict=True):
        drawn = [row for row in strata[label] if row["selected_for"] == "control"]
        assert len(drawn) == share
        assert all(row["inclusion_probability"] == share / len(strata[label]) for row in strata[label])
        if share:
            assert sum(1 / row["inclusion_probability"] for row in drawn) == pytest.approx(len(strata[label]))
    for row in rows:
        if row["stratum"] is None:
            certain = row["role"] == "audit" and row["flagged"]
            assert row["inclusion_probability"] == (1.0 if certain else None)


@quick
@given(audits(), st.integers(0, 12), st.integers(0, 12))
def test_more_controls_keep_the_earlier_ones(prompts, fewer, more):
    fewer, more = sorted((fewer, more))
    first, then = (names_of(rows_of(prompts, triage={"controls": n}), "control") for n in (fewer, more))
    assert first <= then


@quick
@given(audits(), st.randoms())
def test_selection_depends_on_no_order(prompts, random):
    config = settings_of(triage={"alpha": 0.3, "controls": 5}, samples={"band_prompts": 2})
    shuffled = random.sample(prompts, len(prompts))
    key = [("prompt_id", "ascending")]
    assert triaged(shuffled, config).sort_by(key).equals(triaged(prompts, config).sort_by(key))


def test_every_member_of_a_stratum_is_drawn_as_often_as_its_probability_says():
    drawn, n = Counter(), 250
    prompts = [*named("audit", [1.0] * 20), *named("calibration", [1.0] * 9)]
    for seed in range(n):
        rows = rows_of(prompts, seed=seed, triage={"controls": 6})
        drawn.update(names_of(rows, "control"))
    probability = 6 / 20
    assert {row["inclusion_probability"] for row in rows if row["role"] == "audit"} == {probability}
    # Twenty rates with a standard error of 0.029 each.
    assert all(abs(drawn[f"audit-{i}"] / n - probability) < 4 * 0.029 for i in range(20))


def test_a_flag_is_certain_and_a_positive_control_estimates_nothing():
    prompts = [*CROWD, *named("audit", [9.0], prefix="high"), *named("positive_control", [9.0, -9.0])]
    told = {row["prompt_id"]: row for row in rows_of(prompts)}
    assert told["high-0"]["inclusion_probability"] == 1.0
    assert told["positive_control-0"]["flagged"]
    assert [told[f"positive_control-{i}"]["inclusion_probability"] for i in range(2)] == [None, None]


def test_another_seed_draws_others():
    first, second = (rows_of(CROWD, seed=seed, samples={"band_prompts": 5}) for seed in (0, 1))
    assert names_of(first, "control") != names_of(second, "control")
    assert names_of(first, "band") != names_of(second, "band")


def test_controls_and_band_are_the_smallest_hashes_of_their_own_purpose():
    rows = rows_of(CROWD, seed=3, triage={"controls": 12}, samples={"band_prompts": 5})
    fit = [row["prompt_id"] for row in rows if row["role"] == "fit"]
    assert names_of(rows, "band") == set(sorted(fit, key=lambda name: rank_hash(3, "band", name))[:5])
    for members in strata_of(rows).values():
        drawn = sorted(row["prompt_id"] for row in members if row["selected_for"] == "control")
        by_hash = sorted((row["prompt_id"] for row in members), key=lambda name: rank_hash(3, "control", name))
        assert drawn == sorted(by_hash[: len(drawn)])


def test_a_larger_band_keeps_the_smaller_one_and_ends_with_the_fit_prompts():
    bands = [names_of(rows_of(CROWD, samples={"band_prompts": n}), "band") for n in (1, 5, 20, 100)]
    assert [len(band) for band in bands] == [1, 5, 20, 20]
    assert bands[0] < bands[1] < bands[2] == bands[3]


def test_band_prompts_are_of_different_families():
    """A family of thirty, and ten prompts of their own: eleven families, however many are asked for."""
    fit = [Prompt(f"fit-{i}", "fit", family="thirty" if i < 30 else None) for i in range(40)]
    band = names_of(rows_of([*crowd(20, n_fit=0), *fit], samples={"band_prompts": 20}), "band")
    assert len(band) == 11
    assert {f"fit-{i}" for i in range(30, 40)} < band
    (of_thirty,) = band - {f"fit-{i}" for i in range(30, 40)}
    assert of_thirty == min((f"fit-{i}" for i in range(30)), key=lambda name: rank_hash(0, "band", name))


def test_without_controls_nothing_is_drawn_and_the_probability_says_so():
    rows = rows_of(CROWD, triage={"controls": 0})
    assert names_of(rows, "control") == set()
    assert {row["inclusion_probability"] for row in rows if row["stratum"]} == {0.0}


def test_controls_for_all_draw_all():
    table = triaged(CROWD, settings_of(triage={"controls": 10_000}))
    drawable = table.filter(pc.is_valid(table["stratum"]))
    assert set(drawable["selected_for"].to_pylist()) == {"control"}
    assert pc.all(pc.equal(drawable["inclusion_probability"], pa.scalar(1.0))).as_py()
