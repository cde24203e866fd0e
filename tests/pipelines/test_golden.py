"""A whole audit gives what it gave when the first whole run was kept: row by row, column by column, bit by bit.

What is made from fingerprints (sample ids) may be called otherwise. Columns and tables that were added since are not
looked at. On another processor, or with other libraries, numbers round differently: there they are held to 1e-4, and
pictures by what they are nearest to.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sharpaudit.tables.runs import RunFolder
from tests.support.audits import audit, tables
from tests.support.golden import FIRST, todays, unpacked

Rows = list[dict[str, Any]]
BYTES = ("image_sha256", "image_path", "image_bytes", "thumbnail_path")
"""Columns that one bit of a picture changes."""
CLOSE = 1e-4
TABLES = (
    "origins",
    "corpus",
    "fit/unconditional",
    "fit/differences",
    "fit/subspace",
    "fit/thresholds",
    "scores",
    "triage",
    "samples",
    "bands",
    "matches",
)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpacked(FIRST, tmp_path_factory.mktemp("kept"))


@pytest.fixture(scope="module")
def made(kept: Path) -> Path:
    audit(todays(kept / "audit.toml"), kept / "again")
    return kept / "again"


@pytest.fixture(scope="module")
def both(kept: Path, made: Path) -> tuple[dict[str, Rows], dict[str, Rows]]:
    return named(tables(kept / "run")), named(tables(made))


@pytest.fixture(scope="module")
def alike(kept: Path, made: Path) -> bool:
    """Whether both were computed by the same processor and libraries."""
    then, now = (RunFolder.open(root).record() or {} for root in (kept / "run", made))
    return then["hardware"]["cpu"] == now["hardware"]["cpu"] and then["software"] == now["software"]


def named(found: dict[str, Rows]) -> dict[str, Rows]:
    """The tables with samples called by prompt and seed, in the order of their keys."""
    names = {row["sample_id"]: f"{row['prompt_id']} {row['seed_index']}" for row in found["samples"]}
    for name in ("samples", "matches"):
        rows = [row | {"sample_id": names[row["sample_id"]]} for row in found[name]]
        found[name] = sorted(rows, key=lambda row: (row["sample_id"], row.get("rank", 0)))
    return found


def rounded(name: str, value: Any) -> Any:
    """What must agree of a value between processors; the sign of a direction is arbitrary."""
    if isinstance(value, list):
        return [rounded(name, entry) for entry in value]
    if isinstance(value, float):
        return pytest.approx(abs(value) if name == "direction" else value, rel=CLOSE, abs=CLOSE)
    return value


@pytest.mark.parametrize("name", TABLES)
def test_a_table_holds_what_it_held(both: tuple[dict[str, Rows], dict[str, Rows]], alike: bool, name: str) -> None:
    then, now = both[0][name], both[1][name]
    assert len(now) == len(then) > 0
    columns = [column for column in then[0] if alike or column not in BYTES]
    for was, row in zip(then, now, strict=True):
        for column in columns:
            value = row[column]
            if column == "direction" and not alike:
                value = [abs(entry) for entry in value]
            assert value == (was[column] if alike else rounded(column, was[column])), (name, column)


def test_the_report_says_what_it_said(kept: Path, made: Path, alike: bool) -> None:
    then, now = (json.loads((root / "report/facts.json").read_bytes()) for root in (kept / "run", made))
    steps = [{step["step"]: (step["n"], step.get("rate")) for step in facts["flow"]} for facts in (then, now)]
    assert steps[1] | steps[0] == steps[1]
    assert now["reconciles"]
    for was, row in zip(then["findings"]["rows"], now["findings"]["rows"], strict=True):
        for column in was.keys() - {"best_sample_id", *(() if alike else ("thumbnail_path", "best_image_path"))}:
            if alike or column != "best_image_sha256":
                assert row[column] == (was[column] if alike else rounded(column, was[column])), column


def test_the_kept_run_holds_a_little_of_everything(both: tuple[dict[str, Rows], dict[str, Rows]]) -> None:
    """Of a fixture that held no later tier, style or control, the other tests would say little."""
    then = both[0]
    assert {row["tier"] for row in then["scores"]} == {1, 2}
    assert len({row["metric"] for row in then["scores"]}) == 9
    assert {row["style"] for row in then["corpus"]} == {"drawn", "printed", "sung"}
    assert {row["role"] for row in then["corpus"]} == {"audit", "positive_control", "calibration", "fit"}
    chosen = {"flagged", "control", "uncalibrated", "positive_control", "calibration_check", "band", "none"}
    assert {row["selected_for"] for row in then["triage"]} == chosen
    assert {row["status"] for row in then["origins"]} == {"ok", "empty"}
    assert "cleared" in {row["status"] for row in then["scores"]}
    assert {row["band"] for row in then["matches"]} >= {"copy", "none"}
