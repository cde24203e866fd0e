"""Who ranks whom: a prompt among calibration prompts of its own style, as long as there are enough of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_audits import Prompt, decided, named, settings_of

from sharpaudit.statistics.conformal import p_values
from sharpaudit.triage.calibrators import ALL, MERGED, among_themselves, ranked, strata

quick = settings(deadline=None, max_examples=60)
styled = st.lists(st.tuples(st.sampled_from([None, "a", "b", "c"]), st.booleans(), st.integers(0, 5)), max_size=40)


def columns(rows):
    styles, calibrates, scores = zip(*rows, strict=True) if rows else ((), (), ())
    return list(styles), np.array(calibrates, dtype=bool), np.array(scores, dtype=float)


def members(rows, style):
    return sum(counted for own, counted, _ in rows if own == style)


@quick
@given(styled, st.integers(1, 6))
def test_every_prompt_ranks_among_enough_or_among_all(rows, needed):
    styles, calibrates, scores = columns(rows)
    if not calibrates.any():
        return
    found = strata(styles, calibrates, needed)
    p = ranked(scores, found, calibrates)
    small = {style for style in {None, *styles} if style is None or members(rows, style) < needed}
    left = sum(members(rows, style) for style in small)
    for style, stratum, score, own in zip(styles, found, scores, p, strict=True):
        if style not in small:
            assert stratum == f"style: {style}"
            among = [s for other, counted, s in rows if counted and other == style]
        elif left >= needed and small != {None, *styles}:
            assert stratum == MERGED
            among = [s for other, counted, s in rows if counted and other in small]
        else:
            assert stratum == ALL
            among = scores[calibrates]
        assert own == p_values(np.array([score]), np.array(among, dtype=float))[0]


@quick
@given(styled)
def test_a_calibration_prompt_is_not_counted_twice_among_its_like(rows):
    styles, calibrates, scores = columns(rows)
    if not calibrates.any():
        return
    found = strata(styles, calibrates, 2)
    rank = among_themselves(ranked(scores, found, calibrates), found, calibrates)
    assert np.isnan(rank[~calibrates]).all()
    for i in np.flatnonzero(calibrates):
        alike = calibrates if found[i] == ALL else calibrates & (found == found[i])
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
        "of few": ALL,
        "of none": ALL,
        "failed": None,
        "fit-0": None,
    }
    assert rows["of a kind"]["p_value"] * 31 == pytest.approx(round(rows["of a kind"]["p_value"] * 31))
    assert rows["of few"]["p_value"] * 34 == pytest.approx(round(rows["of few"]["p_value"] * 34))
