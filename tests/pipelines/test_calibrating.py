"""What calibration prompts mean for a run: those at the line are looked at, may be excluded, and may be of a style."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from audits import audit, load, tables

from pipelines.rehearsal import rehearse
from pipelines.verifying import faults
from sharpaudit.errors import UserError
from sharpaudit.triage.calibrators import MERGED


def test_calibration_prompts_at_the_line_are_generated_and_matched(clean: Path) -> None:
    """floor(.02 * 121) = 2 of 120."""
    made = tables(clean)
    triage = {row["prompt_id"]: row for row in made["triage"]}
    looked_at = [row for row in triage.values() if row["selected_for"] == "calibration_check"]
    assert len(looked_at) == 2
    assert {row["role"] for row in looked_at} == {"calibration"}
    lowest = min(row["value"] for row in looked_at)
    assert sum(row["role"] == "calibration" and row["value"] >= lowest for row in triage.values()) == 2
    for row in looked_at:
        samples = {sample["sample_id"] for sample in made["samples"] if sample["prompt_id"] == row["prompt_id"]}
        assert len(samples) == row["n_samples"] == 2
        assert samples <= {match["sample_id"] for match in made["matches"]}


def test_excluding_calibration_prompts_redoes_triage_alone(config_path: Path, copy: Path) -> None:
    before = tables(copy)
    out = next(row["prompt_id"] for row in before["triage"] if row["selected_for"] == "calibration_check")
    override = f'triage.exclude_calibration=["{out}"]'
    with pytest.raises(UserError, match=r"triage\.exclude_calibration"):
        audit(config_path, copy, override)
    audit(config_path, copy, override, update=True)
    after = tables(copy)
    assert after["scores"] == before["scores"]
    excluded = [row["prompt_id"] for row in after["triage"] if row["status"] == "excluded"]
    assert excluded == [out]
    values = {row["prompt_id"]: row for row in after["triage"]}
    for row in before["triage"]:
        if row["role"] == "audit":
            above = round(row["p_value"] * 121) - 1 - (values[out]["value"] >= row["value"])
            assert values[row["prompt_id"]]["p_value"] == pytest.approx((1 + above) / 120)
    assert faults(copy) == []


def styled(source: Path, target: Path, style: dict[str, str]) -> Path:
    with source.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    with target.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [*rows[0], "look"], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            first = row["prompt"].split()[1]
            writer.writerow(row | {"look": style.get(first, first)})
    return target


def test_prompts_rank_among_calibration_prompts_of_their_style(config_path: Path, clean: Path, tmp_path: Path) -> None:
    """At alpha = .07 a stratum needs 14 calibration prompts; styles with fewer merge."""
    prompts, style = config_path.parent / "testbed/prompts", {"pencil": "drawing", "oil": "painting"}
    files = {name: styled(prompts / f"{name}.csv", tmp_path / f"{name}.csv", style) for name in ("audit", "harmless")}
    given = [f"corpus.audit={files['audit']}", f"calibration.file={files['harmless']}", "corpus.style_column=look"]
    audit(config_path, tmp_path / "run", *given, "triage.alpha=0.07")
    made = tables(tmp_path / "run")
    style_of = {row["prompt_id"]: row["style"] for row in made["corpus"]}
    counts = dict.fromkeys(style_of.values(), 0)
    for row in made["triage"]:
        counts[style_of[row["prompt_id"]]] += row["role"] == "calibration"
    assert max(counts.values()) >= 14 > min(counts.values())

    def stratum(row: dict[str, Any]) -> str:
        own = style_of[row["prompt_id"]]
        return f"style: {own}" if counts[own] >= 14 else MERGED

    calibrating = [row for row in made["triage"] if row["role"] == "calibration"]
    for row in made["triage"]:
        if row["role"] == "audit":
            assert row["calibrated_by"] == stratum(row)
            among = [other["value"] for other in calibrating if stratum(other) == stratum(row)]
            at_least = sum(value >= row["value"] for value in among)
            assert row["p_value"] == pytest.approx((1 + at_least) / (1 + len(among)))
    # Styles are no scores: those are as they were.
    assert [row["value"] for row in made["scores"]] == [row["value"] for row in tables(clean)["scores"]]


def test_validate_says_what_calibration_prompts_and_controls_cannot_show(config_path: Path) -> None:
    lines = list(rehearse(load(config_path), 0.1))
    told = next(line for line in lines if line.startswith("a false-discovery rate of 0.1"))
    assert "999 where 0.01 of the prompts are memorised, 9,999 where 0.001" in told
    assert told.endswith("these 120 suffice for none of them")
    wide = next(line for line in rehearse(load(config_path, "triage.q=0.9"), 0.1) if "false-discovery" in line)
    assert wide.endswith("these 120 suffice from a share of 0.01")
    assert any(
        "controls: 6 of 49 audited prompts; with no copy among them about 24 memorised" in line for line in lines
    )
