"""What the report says of discoveries, styles and calibration prompts, against tables whose every count is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sharpaudit.report.html import render
from sharpaudit.statistics.conformal import fpr_interval, p_values, smallest_p
from sharpaudit.statistics.fdr import family_q_values, harmless_share
from sharpaudit.triage.calibrators import UNCALIBRATED
from tests.support.handmade import OK, Rows, told

Facts = Callable[..., dict[str, Any]]


def no_pictures(path: str) -> bytes:
    raise AssertionError(f"{path}: pictures are hidden")


def row_of(rows: Rows, table: str, prompt_id: str) -> dict[str, Any]:
    return next(row for row in rows[table] if row["prompt_id"] == prompt_id)


def with_q(rows: Rows, procedure: str = "benjamini-hochberg") -> None:
    """Give the audited rows the q of their p."""
    family = {row["prompt_id"]: row["family_id"] for row in rows["corpus"]}
    audited = [row for row in rows["triage"] if row["role"] == "audit" and row["p_value"] is not None]
    p = np.array([row["p_value"] for row in audited])
    q = family_q_values(p, np.array([family[row["prompt_id"]] for row in audited], dtype=object), procedure)  # type: ignore[arg-type]
    for row, value in zip(audited, q, strict=True):
        row["q_value"] = float(value)


def test_a_rate_that_was_reached_is_claimed_of_prompts_and_families(rows: Rows, facts: Facts) -> None:
    """Nine hypotheses, two of them at p = 1/100: q = 9 / (100 * 2)."""
    with_q(rows)
    found = facts(rows)["discoveries"]
    assert (found["families"], found["prompts"], found["families_claimed"]) == (9, 2, 2)
    p = np.array([row["p_value"] for row in rows["triage"] if row["role"] == "audit" and row["p_value"] is not None])
    assert found["harmless_share"] == harmless_share(p)
    assert found["needed"][0] == {"prevalence": 0.01, "calibration": 999}


def test_one_family_is_one_hypothesis(rows: Rows, facts: Facts) -> None:
    for prompt_id in ("a0", "a1", "a2"):
        row_of(rows, "corpus", prompt_id)["family_id"] = "same"
    with_q(rows)
    # p of the family: 3 / 100 / 2; of seven families it is the first: q = .105.
    found = facts(rows)["discoveries"]
    assert (found["families"], found["prompts"], found["families_claimed"]) == (7, 0, 0)
    run = told()
    run["settings"]["triage"]["q"] = 0.3
    found = facts(rows, run)["discoveries"]
    assert (found["prompts"], found["families_claimed"]) == (3, 1)


def test_a_rate_out_of_reach_leaves_a_ranked_list(rows: Rows, facts: Facts) -> None:
    with_q(rows)
    run = told()
    run["settings"]["triage"]["q"] = 0.01
    found = facts(rows, run)
    assert found["discoveries"]["prompts"] == 0
    # Nine families at p = 1/100 each need nine hits for q = .01.
    assert found["discoveries"]["least"] == 9
    page = render(found, no_pictures)
    assert "ranked list without a claim on the false-discovery rate" in page
    assert "stand out" not in page


def test_without_calibration_prompts_nothing_is_said_to_be_in_reach(rows: Rows, facts: Facts) -> None:
    rows["triage"] = [row for row in rows["triage"] if row["role"] != "calibration"]
    assert facts(rows)["discoveries"]["least"] is None


def test_uncalibrated_prompts_stand_apart_from_the_headline(rows: Rows, facts: Facts) -> None:
    """Photos calibrate; sketches and prompts without a style do not, and two of them rank as high as a flag."""
    assert facts(rows)["styles"] == []
    for row in rows["corpus"]:
        number = int(row["prompt_id"][1:])
        row["style"] = "photo" if row["role"] == "calibration" and number < 60 else "sketch" if number % 2 else None
    style = {row["prompt_id"]: row["style"] for row in rows["corpus"]}
    for row in rows["triage"]:
        if row["calibrated_by"]:
            row["calibrated_by"] = "style: photo" if style[row["prompt_id"]] == "photo" else UNCALIBRATED
        if row["selected_for"] == "flagged":
            row.update(selected_for="uncalibrated", flagged=False)
    known = facts(rows)
    found = {row["stratum"]: row for row in known["styles"]}
    assert found["style: photo"] == {
        "stratum": "style: photo",
        "styles": ["photo"],
        "audited": 0,
        "flagged": 0,
        "apart": 0,
        "calibrating": 60,
        "ranked_among": 60,
    }
    apart = found[UNCALIBRATED]
    assert (apart["audited"], apart["flagged"], apart["apart"], apart["ranked_among"]) == (9, 0, 2, 99)
    assert apart["styles"] == ["", "sketch"]
    flow = {step["step"]: step for step in known["flow"]}
    assert (flow["flagged"]["n"], flow["flagged"]["of"], flow["flagged with a copy"]["n"]) == (0, 0, 0)
    assert (known["copies"]["flagged"]["compared"], known["copies"]["uncalibrated"]["copied"]) == (0, 1)
    assert (known["families"]["families"], known["discoveries"]["families"], known["calibration_check"]["flagged"]) == (
        0,
        0,
        0,
    )
    # What was generated is found, and no part of what may be missed.
    assert known["controls"]["found"] == 1
    page = render(known, no_pictures)
    assert "The other 9 audited prompts are uncalibrated" in page
    assert "9 uncalibrated prompts are counted apart" in page
    assert "none; 2 rank as high" in page
    assert "Of 2 uncalibrated prompts that rank as high as flagged ones, 1 did." in page
    assert known["calibration"]["fpr_low"] is None


def test_styles_have_lines_and_rates_of_their_own(rows: Rows, facts: Facts) -> None:
    style = {row["prompt_id"]: "photo" if int(row["prompt_id"][1:]) < 60 else "sketch" for row in rows["corpus"]}
    for row in rows["corpus"]:
        row["style"] = style[row["prompt_id"]]
    for row in rows["triage"]:
        if row["calibrated_by"]:
            row["calibrated_by"] = f"style: {style[row['prompt_id']]}"
    found = facts(rows)
    assert (found["calibration"]["n"], found["calibration"]["smallest_p"]) == (99, smallest_p(60))
    interval = fpr_interval(found["calibration"]["alpha"], 60)
    assert (found["calibration"]["fpr_low"], found["calibration"]["fpr_high"]) == (interval.low, interval.high)
    assert "style: photo" in render(found, no_pictures)


def test_flags_are_counted_by_family_beside_what_chance_would_give(rows: Rows, facts: Facts) -> None:
    """Nine prompts with a p; a0 (flagged), a2 and a3 are a family, a1 (flagged) stands alone."""
    single = facts(rows)["families"]
    assert (single["families"], single["share"], single["with_flag"], single["largest"]) == (9, 2, 2, 1)
    assert "of a random prompt of a random harmless family" not in render(facts(rows), no_pictures)
    for prompt_id in ("a0", "a2", "a3"):
        row_of(rows, "corpus", prompt_id)["family_id"] = "same"
    known = facts(rows)
    assert known["families"] == {
        "families": 7,
        "prompts": 9,
        "largest": 3,
        "flagged": 2,
        "with_flag": 2,
        "share": pytest.approx(1 + 1 / 3),
        "expected": pytest.approx(0.07),
    }
    page = render(known, no_pictures)
    assert "for this calibration set), of a random prompt of a random harmless family" in page
    assert "the largest family has 3 prompts" in page
    run = told()
    run["settings"]["triage"]["flag_by"] = "q"
    assert facts(rows, run)["families"]["expected"] is None


def checked(rows: Rows, copies: bool) -> None:
    """The highest calibration prompt, looked at."""
    row_of(rows, "triage", "c98").update(selected_for="calibration_check", n_samples=1)
    sample = {"sample_id": "s-c98-0", "prompt_id": "c98", "seed_index": 0}
    source = row_of(rows, "samples", "a0")
    rows["samples"].append({**source, **sample} | OK)
    match = {"profile": "px", "rank": 1, "reference_id": "r", "similarity": 0.99 if copies else 0.1}
    rows["matches"].append({**match, "sample_id": "s-c98-0", "band": "copy" if copies else "none"} | OK)


@pytest.mark.parametrize("copies", [True, False])
def test_calibration_prompts_that_copy_are_named_and_p_is_told_without_them(
    rows: Rows, facts: Facts, copies: bool
) -> None:
    checked(rows, copies)
    # Without c98 (1.98) a prompt at 1.975 ranks above all: 1 / 99, no longer 2 / 100.
    row_of(rows, "triage", "a2").update(value=1.975, p_value=0.02)
    row_of(rows, "scores", "a2")["value"] = 1.975
    run = told()
    run["settings"]["triage"]["alpha"] = 0.0102
    found = facts(rows, run)["calibration_check"]
    values = np.array([row["value"] for row in rows["triage"] if row["role"] == "audit" and row["value"] is not None])
    others = np.array(
        [row["value"] for row in rows["triage"] if row["role"] == "calibration" and row["prompt_id"] != "c98"]
    )
    p = p_values(values, others)
    without = int((p <= 0.0102).sum())
    told_without = found.pop("p_without")
    assert sorted(told_without.values()) == (sorted(p[p <= 0.0102].tolist()) if copies else [])
    assert found == {
        "n": 1,
        "copied": ["c98"] if copies else [],
        "flagged": 2,
        "flagged_without": without if copies else 2,
        "excluded": 0,
    }
    assert without == 3
    page = render(facts(rows, run), no_pictures)
    assert ("triage.exclude_calibration" in page) == copies
    assert ("without the calibration prompts that gave a copy" in page) == copies


def test_excluded_calibration_prompts_are_counted(rows: Rows, facts: Facts) -> None:
    row_of(rows, "triage", "c5").update(status="excluded", calibrated_by=None)
    found = facts(rows)
    assert (found["calibration_check"]["excluded"], found["calibration"]["n"]) == (1, 98)
