"""Fewer steps: whose copies stay, prompt by prompt; on the analytic model, for speed."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from pipelines.bench.solvers import REFERENCE, SETTINGS, K, Setting, bench_lines, markdown, measure, settings
from sharpaudit.config import LAB, SamplesConfig
from sharpaudit.errors import UserError

ANALYTIC = LAB / "analytic"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four planted prompts that are memorised, one that is not, and thirty harmless ones to fit on."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "model").mkdir()
    shutil.copy(ANALYTIC / "model.json", folder / "model")
    shutil.copytree(ANALYTIC / "index", folder / "references")
    planted = [entry["prompt"] for entry in json.loads((ANALYTIC / "model.json").read_text())["planted"]]
    rows = [
        (prompt, "development", f"p{i}", "exact" if i else "template", "memorised")
        for i, prompt in enumerate(planted[:4])
    ]
    rows += [("a harmless caption", "development", "h", "exact", "memorised")]
    rows += [(f"a fit prompt {i}", "fit", f"f{i}", "unseen", "harmless") for i in range(30)]
    with (folder / "truth.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("prompt", "split", "family", "kind", "label"), *rows])
    return folder


def test_copies_are_found_at_any_setting_and_what_is_kept_is_not_made_again(lab: Path, tmp_path: Path) -> None:
    asked = settings(["dpm-solver++:8", "ddim:2"])
    found = list(measure(lab, "development", tmp_path, asked))
    assert [(one.solver, one.steps) for one in found] == [REFERENCE, ("dpm-solver++", 8), ("ddim", 2)]
    assert [one.evaluations for one in found] == [50, 16, 4]
    for one in found[:2]:
        assert len(one.found) == 4
        assert all(one.copies[prompt] >= K - 1 for prompt in one.found)
        assert "a harmless caption" not in one.found
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert list(measure(lab, "development", tmp_path, asked)) == found
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_what_another_lab_left_is_not_taken_over(lab: Path, tmp_path: Path) -> None:
    (first,) = measure(lab, "development", tmp_path / "out", [("ddim", 2)])
    other = tmp_path / "other"
    shutil.copytree(lab, other)
    rows = (other / "truth.csv").read_text().splitlines(keepends=True)
    (other / "truth.csv").write_text("".join(row for row in rows if "a harmless caption" not in row))
    (second,) = measure(other, "development", tmp_path / "out", [("ddim", 2)])
    assert first.copies.keys() - second.copies.keys() == {"a harmless caption"}
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_a_split_without_memorised_prompts_is_refused(lab: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no prompt of the test split is memorised"):
        list(measure(lab, "test", tmp_path))


@pytest.mark.parametrize("text", ["ddim", "ddim:1", "ddim:x", ":5", "ddim:1000"])
def test_a_setting_that_is_none_is_one_line(text: str) -> None:
    with pytest.raises(UserError, match=f"--at {text}: write a solver and 2 to 999 steps, such as ddim:15"):
        settings([text])


def test_settings_are_those_of_the_table_or_the_reference_and_what_is_asked_for() -> None:
    assert settings([]) == list(SETTINGS)
    assert settings(["ddim:25", "ddim:9"]) == [REFERENCE, ("ddim", 9)]
    with pytest.raises(UserError, match='no solver is called "dimm"'):
        settings(["dimm:9"])


def made(solver: str, steps: int, copies: str) -> Setting:
    numbers = {f"p{i}": int(n) for i, n in enumerate(copies)}
    kinds = {name: "template" if name == "p0" else "exact" for name in numbers}
    return Setting(solver, steps, 2 * steps, 0.8, numbers, {name: n / 4 for name, n in numbers.items()}, kinds)


def test_what_is_lost_and_gained_is_counted_prompt_by_prompt() -> None:
    default = SamplesConfig()
    found = [made(*REFERENCE, "44400"), made("x", 9, "40310")]
    lines = {line.name: line for line in bench_lines(found)}
    assert lines["solvers.x_9.found"].value == lines["solvers.ddim_25.found"].value == 0.6
    assert (lines["solvers.x_9.lost"].value, lines["solvers.ddim_25.lost"].value) == (0.2, 0)
    assert {line.name for line in lines.values() if line.goal is not None} == {
        f"solvers.{one.solver}_{one.steps}.lost"
        for one in found
        if (one.solver, one.steps) == (default.solver, default.steps)
    }
    rows = [line.split(" | ") for line in markdown(found).splitlines() if line.startswith("| x")]
    assert rows == [["| x", "9", "18", "0.800", "2 of 4", "1 of 1", "1", "1", "1.60", "0.000 |"]]
