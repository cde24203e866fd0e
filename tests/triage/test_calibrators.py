"""Who ranks whom: a prompt among calibration prompts of its own style, as long as there are enough of them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharpaudit.statistics.conformal import p_values
from sharpaudit.triage.calibrators import (
    ALL,
    NO_STYLE,
    UNCALIBRATED,
    among_themselves,
    ranked,
    ranked_among,
    strata,
    uncalibrated,
)
from tests.support.small_audits import Prompt, decided, named, settings_of, triaged

quick = settings(deadline=None, max_examples=60)
styled = st.lists(st.tuples(st.sampled_from([None, "a", "b", "c"]), st.booleans(), st.integers(0, 5)), max_size=40)


def columns(rows):
    styles, calibrates, scores = zip(*rows, strict=True) if rows else ((), (), ())
    return list(styles), np.array(calibrates, dtype=bool), np.array(scores, dtype=float)


def members(rows, style):
    return sum(counted for own, counted, _ in rows if own == style)


@quick
@given(styled, st.integers(1, 6))
def test_every_prompt_ranks_among_enough_of_its_style_or_is_uncalibrated(rows, needed):
    styles, calibrates, scores = columns(rows)
    if not calibrates.any():
        return
    found = strata(styles, ~calibrates, calibrates, needed)
    p = ranked(scores, found, calibrates)
    named = any(style is not None for style, counted, _ in rows if not counted)
    for style, stratum, score, own in zip(styles, found, scores, p, strict=True):
        among = scores[calibrates]
        if not named:
            assert stratum == ALL
        elif members(rows, style) < needed:
            assert stratum == UNCALIBRATED
        else:
            assert stratum == (NO_STYLE if style is None else f"style: {style}")
            among = np.array([s for other, counted, s in rows if counted and other == style], dtype=float)
        assert own == p_values(np.array([score]), among)[0]


@quick
@given(styled, st.integers(1, 6))
def test_what_is_said_beforehand_is_what_the_strata_are(rows, needed):
    styles, calibrates, _ = columns(rows)
    found = strata(styles, ~calibrates, calibrates, needed)
    of_style = Counter(s for s, c, _ in rows if not c), Counter(s for s, c, _ in rows if c)
    left = uncalibrated(*of_style, needed)
    assert sum(left.values()) == sum(found[~calibrates] == UNCALIBRATED)
    sizes = {int((calibrates & (found == one)).sum()) for one in set(found[~calibrates]) - {UNCALIBRATED}}
    if (~calibrates).any():
        assert set(ranked_among(*of_style, needed)) == sizes


@quick
@given(styled)
def test_a_calibration_prompt_is_not_counted_twice_among_its_like(rows):
    styles, calibrates, scores = columns(rows)
    if not calibrates.any():
        return
    found = strata(styles, ~calibrates, calibrates, 2)
    rank = among_themselves(ranked(scores, found, calibrates), found, calibrates)
    assert np.isnan(rank[~calibrates]).all()
    for i in np.flatnonzero(calibrates):
        alike = calibrates if found[i] in (ALL, UNCALIBRATED) else calibrates & (found == found[i])
        assert rank[i] == pytest.approx((scores[alike] >= scores[i]).sum() / (alike.sum() + 1))


def shifted(rng, n, style, role, by):
    return [Prompt(f"{role}-{style}-{i}", role, float(v + by), style=style) for i, v in enumerate(rng.normal(size=n))]


def realised(with_styles: bool) -> dict[str, float]:
    """The false-positive rate of each style over many draws at a nominal 5%: photos score higher than drawings."""
    rng, flagged = np.random.default_rng(0), {"photo": [], "drawing": []}
    for _ in range(60):
        prompts = [
            prompt
            for role, n in (("calibration", 60), ("audit", 60))
            for style, by in (("photo", 1.0), ("drawing", 0.0))
            for prompt in shifted(rng, n, style, role, by)
        ]
        told = {p.name: p.style for p in prompts}
        if not with_styles:
            prompts = [Prompt(p.name, p.role, p.value) for p in prompts]
        for name, row in decided(prompts, settings_of(triage={"alpha": 0.05})).items():
            if row["role"] == "audit":
                flagged[told[name]].append(row["flagged"])
    return {style: float(np.mean(found)) for style, found in flagged.items()}


def test_the_rate_is_nominal_in_every_style_and_without_styles_it_is_not():
    """Standard error of each: about .006, of the 60 calibration sets more than of the prompts."""
    # floor(.05 * 61) / 61 of each stratum.
    assert realised(True) == pytest.approx({"photo": 3 / 61, "drawing": 3 / 61}, abs=0.02)
    pooled = realised(False)
    assert pooled["photo"] > 0.08
    assert pooled["drawing"] < 0.03


def test_the_table_says_among_whom_a_prompt_was_ranked():
    prompts = [
        *shifted(np.random.default_rng(0), 30, "photo", "calibration", 1.0),
        *shifted(np.random.default_rng(1), 3, "sketch", "calibration", 0.0),
        Prompt("of a kind", value=1.0, style="photo"),
        Prompt("of few", value=1.0, style="sketch"),
        Prompt("of none", value=1.0),
        Prompt("failed", status="non_finite", style="photo"),
        *named("fit", [None]),
    ]
    rows = decided(prompts, settings_of(triage={"alpha": 0.1}))
    told = {name: rows[name]["calibrated_by"] for name in ("of a kind", "of few", "of none", "failed", "fit-0")}
    assert told == {
        "of a kind": "style: photo",
        "of few": UNCALIBRATED,
        "of none": UNCALIBRATED,
        "failed": None,
        "fit-0": None,
    }
    assert rows["of a kind"]["p_value"] * 31 == pytest.approx(round(rows["of a kind"]["p_value"] * 31))
    assert rows["of few"]["p_value"] * 34 == pytest.approx(round(rows["of few"]["p_value"] * 34))


def test_a_style_without_calibration_prompts_is_ranked_and_never_flagged():
    """1.5 standard deviations above the styles that calibrate, 21% of its harmless prompts rank at p <= .01."""
    rng = np.random.default_rng(2)
    prompts = [
        *shifted(rng, 999, "photo", "calibration", 0.0),
        *shifted(rng, 300, "photo", "audit", 0.0),
        *shifted(rng, 300, "sketch", "audit", 1.5),
        Prompt("copied", value=9.0, style="sketch"),
    ]
    rows = {row["prompt_id"]: row for row in triaged(prompts).to_pylist()}
    sketches = [row for name, row in rows.items() if "sketch" in name or name == "copied"]
    assert not any(row["flagged"] for row in sketches)
    assert all((row["calibrated_by"], row["q_value"]) == (UNCALIBRATED, None) for row in sketches)
    apart = [row for row in sketches if row["p_value"] <= 0.01]
    assert 0.15 < len(apart) / 301 < 0.28
    # They are looked at as flagged ones are, and the others may be drawn as controls.
    for row in sketches:
        assert (row["selected_for"] == "uncalibrated") == (row in apart)
        assert (row["stratum"] is None) == (row["inclusion_probability"] == 1) == (row in apart)
        assert (row["n_samples"] > 0) == (row["selected_for"] != "none")
    assert rows["copied"]["selected_for"] == "uncalibrated"
    photos = [row for name, row in rows.items() if name.startswith("audit-photo")]
    assert {row["calibrated_by"] for row in photos} == {"style: photo"}
    assert np.mean([row["flagged"] for row in photos]) < 0.05


def test_two_small_styles_do_not_make_one_that_calibrates():
    """Together they have 99 calibration prompts, and the higher one would be flagged at twice the rate."""
    rng = np.random.default_rng(3)
    prompts = [
        *shifted(rng, 99, "photo", "calibration", 0.0),
        *(row for style, by in (("oil", 3.0), ("ink", 0.0)) for row in shifted(rng, 50, style, "calibration", by)),
        *(row for style, by in (("oil", 3.0), ("ink", 0.0)) for row in shifted(rng, 50, style, "audit", by)),
    ]
    rows = decided(prompts)
    assert {row["calibrated_by"] for row in rows.values() if row["role"] == "audit"} == {UNCALIBRATED}


def test_prompts_without_a_style_are_one_more_where_others_have_one():
    rng, few = np.random.default_rng(4), settings_of(triage={"alpha": 0.1})
    plain = [Prompt(f"plain-{i}", "calibration", float(v)) for i, v in enumerate(rng.normal(size=20))]
    styled = [*shifted(rng, 20, "photo", "calibration", 0.0), Prompt("photo", value=0.0, style="photo")]
    asked = Prompt("asked", value=0.0)
    assert decided([*plain, *styled, asked], few)["asked"]["calibrated_by"] == NO_STYLE
    assert decided([*plain[:8], *styled, asked], few)["asked"]["calibrated_by"] == UNCALIBRATED
    # Where no audited prompt has one, styles of calibration prompts say nothing of them.
    assert decided([*plain[:8], *styled[:-1], asked], few)["asked"]["calibrated_by"] == ALL


def test_uncalibrated_prompts_are_no_hypotheses_of_q():
    rng = np.random.default_rng(5)
    known = [*shifted(rng, 999, "photo", "calibration", 0.0), *shifted(rng, 20, "photo", "audit", 4.0)]
    strange = shifted(rng, 200, "sketch", "audit", 1.5)
    config = settings_of(triage={"flag_by": "q"})
    alone, both = decided(known, config), decided([*known, *strange], config)
    assert {name: both[name]["q_value"] for name in alone} == {name: row["q_value"] for name, row in alone.items()}
    assert not any(both[row.name]["flagged"] for row in strange)
    assert any(both[row.name]["apart"] for row in strange)
