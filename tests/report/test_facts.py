"""Facts against tables whose every count is known, and against tables that lie."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharpaudit.matches.decide import false_match_bound
from sharpaudit.report.sections.screen import BINS, bins
from sharpaudit.statistics.intervals import clopper_pearson, upper_bound
from tests.support.handmade import OK, Rows, told

Facts = Callable[..., dict[str, Any]]


def steps(facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {step["step"]: step for step in facts["flow"]}


def of(rows: Rows, table: str, **where: Any) -> list[dict[str, Any]]:
    return [row for row in rows[table] if all(row.get(k) == v for k, v in where.items())]


def test_the_flow_counts_what_was_put_there(rows: Rows, facts: Facts) -> None:
    found = facts(rows)
    assert found["reconciles"], found["differences"]
    flow = steps(found)
    assert [step["n"] for step in found["flow"]] == [12, 11, 10, 9, 2, 6, 12, 1, 1, 2]
    assert flow["generated"]["samples"] == 12
    interval = clopper_pearson(2, 9)
    assert (flow["flagged"]["rate"], flow["flagged"]["low"]) == (2 / 9, interval.low)
    assert found["positive_controls"]["copied"]["rate"] == 1.0
    assert found["bands"]["false_match_high"] == false_match_bound(2)
    assert found["bands"]["samples"] == {"copy": 2, "near": 0, "none": 10}


def test_a_band_prompt_that_copies_is_named(rows: Rows, facts: Facts) -> None:
    assert facts(rows)["bands"]["set_aside"] == []
    of(rows, "matches", sample_id="s-f1-1")[0].update(similarity=0.95, band="copy")
    rows["bands"][0]["n_exceptions"] = 1
    found = facts(rows)["bands"]
    assert found["set_aside"] == [{"prompt": "prompt f1", "best_similarity": 0.95, "best_reference_id": "r-f1-1"}]
    assert found["false_match_high"] == false_match_bound(2, 1)


def test_a_finding_carries_the_evidence_of_its_best_sample(rows: Rows, facts: Facts) -> None:
    found = {row["prompt_id"]: row for row in facts(rows)["findings"]["rows"]}
    assert list(found) == ["a0", "a5"]
    best = of(rows, "matches", prompt_id="a0", similarity=0.99)[0]
    evidence = [found["a0"][f"best_{name}"] for name in ("sample_id", "reference_id", "similarity", "seed_index")]
    assert evidence == [best["sample_id"], best["reference_id"], 0.99, 1]
    assert found["a0"]["thumbnail_path"] == best["thumbnail_path"]
    assert (found["a0"]["source_rows"], found["a0"]["external_ids"]) == (2, ["row-a0", "row-a0"])


def test_a_finding_without_a_source_row_is_still_shown(rows: Rows, facts: Facts) -> None:
    rows["origins"] = [row for row in rows["origins"] if row.get("prompt_id") != "a0"]
    found = facts(rows)
    assert (found["findings"]["rows"][0]["source_rows"], found["reconciles"]) == (0, False)


def test_evidence_of_two_samples_is_never_mixed(rows: Rows, facts: Facts) -> None:
    best, other = (of(rows, "matches", sample_id=f"s-a0-{seed}")[0] for seed in (1, 0))
    best["thumbnail_path"] = None
    assert facts(rows)["findings"]["rows"][0]["thumbnail_path"] is None
    other |= {"similarity": 0.85, "band": "copy"}
    assert [row["best_seed_index"] for row in facts(rows)["findings"]["rows"]] == [1, 1]
    other["similarity"] = best["similarity"]
    first = facts(rows)["findings"]["rows"][0]
    assert (first["best_seed_index"], first["best_reference_id"]) == (0, other["reference_id"])


def test_the_flag_line_separates_the_flagged(rows: Rows, facts: Facts) -> None:
    found = facts(rows)
    line = found["calibration"]["flag_line"]
    scored = [row for row in rows["triage"] if row["role"] == "audit" and row["value"] is not None]
    assert all((row["value"] > line) == row["flagged"] for row in scored)
    assert sum(found["histogram"]["audit"]) == len(scored)
    assert sum(found["histogram"]["calibration"]) == found["calibration"]["n"] == 99


def test_flags_by_q_move_the_flag_line_to_the_largest_flagged_p(rows: Rows, facts: Facts) -> None:
    of(rows, "triage", prompt_id="a1")[0]["p_value"] = 0.03
    run = told()
    run["settings"]["triage"] |= {"flag_by": "q"}
    found = facts(rows, run)
    values = sorted((row["value"] for row in rows["triage"] if row["role"] == "calibration"), reverse=True)
    assert found["calibration"]["flag_line"] == values[2]
    for row in rows["triage"]:
        row["flagged"] = False
    assert facts(rows, run)["calibration"]["flag_line"] is None


def test_the_bound_on_misses_is_that_of_the_control_sample(rows: Rows, facts: Facts) -> None:
    controls = facts(rows)["controls"]
    stratum = controls["strata"][0]
    assert (stratum["size"], stratum["drawn"], stratum["copied"], stratum["not_examined"]) == (7, 4, 1, 0)
    assert controls["missed_high"] == pytest.approx(7 * upper_bound(1, 4, 0.95))
    assert controls["recall_low"] == pytest.approx(1 / (1 + controls["missed_high"]))
    assert controls["miss_rate"] == pytest.approx({"estimate": 1 / 4, "high": controls["missed_high"] / 7})


@pytest.mark.parametrize("table", ["samples", "matches"])
def test_a_control_that_failed_never_makes_the_bound_smaller(rows: Rows, facts: Facts, table: str) -> None:
    for row in of(rows, table, prompt_id="a2", sample_id="s-a2-0"):
        rows[table].remove(row)
    controls = facts(rows)["controls"]
    assert controls["strata"][0]["not_examined"] == 1
    assert controls["missed_high"] == pytest.approx(7 * upper_bound(2, 4, 0.95))


def lose(table: str) -> Callable[[Rows], None]:
    return lambda rows: rows[table].remove(rows[table][0])


def double(table: str) -> Callable[[Rows], None]:
    return lambda rows: rows[table].append(dict(rows[table][0]))


def rename(table: str) -> Callable[[Rows], None]:
    return lambda rows: rows[table][0].update(prompt_id="a-stranger")


LIES = {
    "a lost prompt": lose("corpus"),
    "a lost score": lose("scores"),
    "a lost decision": lose("triage"),
    "a lost sample": lose("samples"),
    "a lost match": lose("matches"),
    "a prompt twice": double("corpus"),
    "a score twice": double("scores"),
    "a decision twice": double("triage"),
    "a sample twice": double("samples"),
    "a match twice": double("matches"),
    "a score of nobody": rename("scores"),
    "a decision on nobody": rename("triage"),
    "a prompt from nowhere": rename("corpus"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_table_that_lies_is_found_out(rows: Rows, facts: Facts, lie: str) -> None:
    LIES[lie](rows)
    found = facts(rows)
    assert not found["reconciles"]
    assert all(isinstance(line, str) for line in found["differences"])


def test_a_quarantined_shard_accounts_for_its_rows(rows: Rows, facts: Facts) -> None:
    for row in of(rows, "matches", prompt_id="a3"):
        rows["matches"].remove(row)
    assert not facts(rows)["reconciles"]
    aside = {"stage": "match", "shard": "x", "rows": 2, "reason": "it ended three workers"}
    found = facts(rows, told() | {"quarantined": [aside]})
    assert found["reconciles"]
    assert found["quarantined"] == [aside]


def test_exclusions_say_why(rows: Rows, facts: Facts) -> None:
    found = {(row["stage"], row["status"]): (row["n"], row["sentence"]) for row in facts(rows)["exclusions"]}
    assert found[("ingest", "empty")][0] == 1
    assert "NaN or infinite" in found[("triage", "non_finite")][1]


def test_facts_are_strict_json_whatever_the_numbers(rows: Rows, facts: Facts) -> None:
    for number, row in zip((math.nan, math.inf, -math.inf), rows["triage"][2:5], strict=True):
        row["value"] = row["q_value"] = number
    rows["fit/unconditional"][0]["noise_floor"] = math.nan
    text = json.dumps(facts(rows), allow_nan=False)
    assert json.loads(text)["noise_floor"] is None


def test_scores_of_zero_are_counted_where_the_axis_has_no_place(rows: Rows, facts: Facts) -> None:
    calibrators = {row["prompt_id"] for row in rows["triage"] if row["role"] == "calibration"}
    for row in [*rows["triage"], *rows["scores"]]:
        if row["prompt_id"] in calibrators:
            row["value"] = 0.0
    histogram = facts(rows)["histogram"]
    assert (histogram["not_positive"], histogram["line"]["at"], sum(histogram["calibration"])) == (99, 0.0, 0)


def test_a_prompt_at_the_threshold_of_a_tier_is_borderline(rows: Rows, facts: Facts) -> None:
    """Rounding elsewhere may let it pass or not, however far its p is from the level."""
    far = next(row for row in rows["scores"] if row["prompt_id"] == "a7")
    assert far["prompt_id"] not in facts(rows)["borderline"]
    gate = {"tier": 2, "metric": far["metric"], "quantile": 0.5, "threshold": far["value"] * (1 + 5e-5), "n": 9}
    rows["fit/thresholds"].append(gate | OK)
    assert far["prompt_id"] in facts(rows)["borderline"]
    rows["fit/thresholds"][-1]["threshold"] = far["value"] * (1 + 5e-4)
    assert far["prompt_id"] not in facts(rows)["borderline"]


@given(low=st.floats(1e-9, 1e3), ratio=st.floats(1, 1e9))
def test_bins_of_one_ratio_hold_their_extremes(low, ratio):
    edges = bins(low, low * ratio)
    assert (edges[0], edges[-1], len(edges)) == (low, low * ratio, BINS + 1)
    assert edges == sorted(edges)
    assert edges == pytest.approx(np.geomspace(low, low * ratio, BINS + 1), rel=1e-12)
