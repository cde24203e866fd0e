"""A run held against the truth: each figure counts the right prompts, and a stranger's run is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.research.lab.labels import Judged
from pipelines.research.lab.publish import write_truth
from pipelines.research.lab.splits import split
from pipelines.research.lab.trainingset import MINIATURE, Plan, plan
from sharpaudit.errors import UserError
from sharpaudit.lab.comparison import FALSE_FLAGS, Audited, audited_by, compare, unmet
from sharpaudit.lab.detectors import Truth, read_truth

RECIPE = replace(MINIATURE, exact=((40, 8),), templates=4, harmless=80)


@pytest.fixture(scope="module")
def drawn() -> Plan:
    return plan(RECIPE)


@pytest.fixture(scope="module")
def folder(drawn: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything planted is copied, one exact plant in part, one other never; two never-planted prompts copy others."""
    folder = tmp_path_factory.mktemp("lab")
    judged = [Judged(p, 8, 8 * p.planted, 0) for p in drawn.prompts]
    judged[0], judged[1] = replace(judged[0], own=2), replace(judged[1], own=0)
    for i in [i for i, entry in enumerate(judged) if not entry.prompt.planted][:2]:
        judged[i] = replace(judged[i], other=1)
    sizes = {"fit": 20, "calibration": 20, "development": 10, "test": 20}
    write_truth(folder, judged, split(judged, sizes, {"exact": 1, "template": 0}, seed=0), seed=0)
    return folder


def own_picture(row: Truth) -> str:
    name = row.family.replace("/", "-")
    return f"template-{name}-003" if row.kind == "template" else f"planted-{name}"


def perfect(folder: Path) -> list[Audited]:
    """Every planted prompt with copies is flagged and found; two harmless prompts and a neighbour are the controls."""
    truth = read_truth(folder)
    found = [row.label in ("memorised", "partly") for row in truth]
    harmless = [i for i, row in enumerate(truth) if row.label == "harmless" and row.never_planted]
    controls = {*harmless[:2], next(i for i, row in enumerate(truth) if row.label == "neighbour")}
    return [
        Audited(row.prompt, hit, i in controls, own_picture(row) if hit else None)
        for i, (row, hit) in enumerate(zip(truth, found, strict=True))
    ]


def figures(lines: list[dict[str, Any]]) -> dict[str, tuple[int, int]]:
    return {line["figure"]: (line["k"], line["n"]) for line in lines if "figure" in line}


def test_a_perfect_audit_finds_all_and_flags_nothing_else(folder: Path) -> None:
    lines = compare(folder, perfect(folder))
    told = figures(lines)
    assert told["exact plants, memorised: found by the flags"] == (6, 6)
    assert told["exact plants, partly memorised: found by the flags"] == (1, 1)
    assert told["exact plants, not memorised: flagged"] == (0, 1)
    assert told["template plants, memorised: found by the flags"] == (4, 4)
    assert told["neighbours: found by the flags"] == (0, 2)
    assert told["neighbours: controls, with a copy"] == (0, 1)
    assert told["harmless, never planted: flagged"] == (0, 78)
    assert told["harmless, never planted: controls, with a copy"] == (0, 2)
    assert told["findings that show a planted picture"] == told["findings that show their own plant"] == (11, 11)
    assert all("figure" in line for line in lines)


def test_every_audited_prompt_is_of_one_group_and_every_finding_in_one_count(folder: Path) -> None:
    audited = perfect(folder)
    told = figures(compare(folder, audited))
    assert sum(n for name, (_, n) in told.items() if name.endswith(": flagged")) == len(audited)
    copies = [k for name, (k, _) in told.items() if name.endswith("with a copy")]
    assert sum(copies) == sum(row.shown is not None for row in audited)


def test_misses_false_flags_and_foreign_pictures_are_counted(folder: Path) -> None:
    truth, audited = read_truth(folder), perfect(folder)
    where = {kind: [i for i, row in enumerate(truth) if row.kind == kind] for kind in ("exact", "template", "seen")}
    memorised = [i for i in where["exact"] if truth[i].label == "memorised"]
    harmless = [i for i in where["seen"] if truth[i].label == "harmless" and not audited[i].control]
    audited[memorised[0]] = replace(audited[memorised[0]], shown=None)
    audited[memorised[1]] = replace(audited[memorised[1]], shown="seen-an-owl-0")
    audited[memorised[3]] = replace(audited[memorised[3]], flagged=False, control=True)
    audited[where["template"][0]] = replace(audited[where["template"][0]], shown=own_picture(truth[memorised[2]]))
    audited[harmless[0]] = replace(audited[harmless[0]], flagged=True, shown=own_picture(truth[memorised[2]]))
    audited[harmless[1]] = replace(audited[harmless[1]], flagged=True)
    lines = compare(folder, audited)
    told = figures(lines)
    assert told["exact plants, memorised: flagged"] == (5, 6)
    # What the control draw happened to hit is no merit of the flags.
    assert told["exact plants, memorised: found by the flags"] == (4, 6)
    assert told["exact plants, memorised: flagged, with a copy"] == (4, 5)
    assert told["exact plants, memorised: controls, with a copy"] == (1, 1)
    assert told["harmless, never planted: flagged"] == (2, 78)
    # Of 78 harmless prompts four were generated.
    assert told["harmless, never planted: flagged, with a copy"] == (1, 2)
    assert told["harmless, never planted: controls, with a copy"] == (0, 2)
    assert "harmless, never planted: found by the flags" not in told
    assert told["findings that show their own plant"] == (8, 11)
    # Another's plant is a finding as good as one's own; a picture that was never planted is none.
    assert told["findings that show a planted picture"] == (10, 11)
    exceptions = {line["prompt"] for line in lines if "figure" not in line}
    assert exceptions == {truth[i].prompt for i in (memorised[1], where["template"][0], harmless[0])}
    rate = next(line for line in lines if line.get("figure") == "harmless, never planted: flagged")
    assert rate["low"] < 2 / 78 < rate["high"]


def test_templates_are_told_from_copies_of_the_whole_where_it_is_known(folder: Path) -> None:
    told = figures(compare(folder, perfect(folder)))
    assert (
        told["copies of exact plants told as of the whole"]
        == told["copies of template plants told as of a part"]
        == (0, 0)
    )
    truth, audited = read_truth(folder), perfect(folder)
    found = [i for i, row in enumerate(audited) if row.shown is not None]
    for i in found:
        audited[i] = replace(audited[i], extent="whole")
    one = next(i for i in found if truth[i].kind == "template")
    audited[one] = replace(audited[one], extent="part")
    # Of another's plant it is not known what a copy should be of.
    other = next(i for i in found if truth[i].kind == "exact")
    audited[other] = replace(audited[other], shown="planted-of-another")
    told = figures(compare(folder, audited))
    assert told["copies of exact plants told as of the whole"] == (6, 6)
    assert told["copies of template plants told as of a part"] == (1, 4)


def test_an_earlier_run_is_compared_without_what_it_does_not_know() -> None:
    assert "extent" not in audited_by(["findings"])
    assert "k.extent" in audited_by(["findings", "corroborated"])


def test_a_run_over_other_prompts_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"not in .*truth\.csv"):
        compare(folder, [Audited("a stranger's prompt", flagged=False, control=False, shown=None)])


def test_goals_are_met_by_a_good_audit_and_each_miss_is_named(folder: Path) -> None:
    good = compare(folder, perfect(folder))
    assert unmet(good, 0.01) == []
    by_name = {line["figure"]: i for i, line in enumerate(good)}
    for name, spoiled in {
        "exact plants, memorised: found by the flags": {"k": 4},
        "findings that show a planted picture": {"k": 10},
        FALSE_FLAGS: {"low": 0.011, "high": 0.03},
    }.items():
        lines = [line | spoiled if i == by_name[name] else line for i, line in enumerate(good)]
        (told,) = unmet(lines, 0.01)
        assert told.startswith(f"{name}: ")
    assert len(unmet(compare(folder, []), 0.01)) == 2
