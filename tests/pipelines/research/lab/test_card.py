"""The card says what the files beside it say; the table of detectors counts the right prompts."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.research.lab.agreement import Counted, write_generations
from pipelines.research.lab.build import minutes
from pipelines.research.lab.card import DOSE, write_card
from pipelines.research.lab.labels import Judged
from pipelines.research.lab.publish import dose_response, write_truth
from pipelines.research.lab.splits import split
from pipelines.research.lab.training import MINIATURE as TRAINING
from pipelines.research.lab.trainingset import MINIATURE, Plan, plan
from sharpaudit.lab.detectors import COLUMNS, DETECTORS, INTERVALS, Truth, columns, log_touch, read_truth, table
from sharpaudit.seeds import generator
from sharpaudit.statistics.intervals import upper_bound

RECIPE = replace(MINIATURE, exact=((40, 6),), templates=4, harmless=80)
SIZES = {"fit": 20, "calibration": 20, "development": 12, "test": 20}


@pytest.fixture(scope="module")
def drawn() -> Plan:
    return plan(RECIPE)


@pytest.fixture
def folder(drawn: Plan, tmp_path: Path) -> Path:
    """A lab folder without a model: all plants copied, one seen prompt a neighbour."""
    judged = [Judged(p, 8, 8 * p.planted, 0) for p in drawn.prompts]
    first = next(i for i, entry in enumerate(judged) if entry.prompt.kind == "seen")
    judged[first] = replace(judged[first], other=2)
    write_truth(tmp_path, judged, split(judged, SIZES, {"exact": 3, "template": 1}, seed=0), seed=0)
    (tmp_path / DOSE).write_text(json.dumps(dose_response(judged, 1.0)))
    write_generations(tmp_path, counted(judged))
    versions = {"torch": "9.9"}
    settings = {"recipe": asdict(RECIPE), "training": asdict(TRAINING), "objects": 160, "minutes": 1.5}
    (tmp_path / "settings.json").write_text(json.dumps(settings | {"versions": versions, "sha256": {}}))
    return tmp_path


def counted(judged: list[Judged]) -> list[Counted]:
    """The instruments differ on the first prompt; two prompts were drawn, of which one copies."""
    rows = [
        Counted(e.prompt.caption, "planted", e.prompt.kind, 5.0, 8, e.own, e.other, e.own, e.other, 0)
        for e in judged
        if e.own or e.other
    ]
    rows[0] = replace(rows[0], regions_own=0, disputed=8)
    rows += [replace(rows[0], prompt=f"drawn {i}", chosen="drawn", pixels_own=0, disputed=0) for i in range(2)]
    rows[-1] = replace(rows[-1], pixels_other=1, regions_other=1)
    return rows + [replace(row, guidance=1.0) for row in rows[:4]]


def test_the_card_says_where_instruments_part_and_what_was_never_generated(folder: Path) -> None:
    text = write_card(folder).read_text()
    assert "| 5 | 13 | 12 (92.3%) | 104 | 96 (92.3%) |" in text
    assert "| 1 | 4 | 3 (75.0%) | 32 | 24 (75.0%) |" in text
    first = plan(RECIPE).prompts[0].caption
    assert f"| {first} | exact | memorised | 8 / 0 | harmless | 0 / 0 |" in text
    assert "Of 2 prompts drawn from those that no metric ranks high, 1 copy a plant." in text
    assert f"at most {upper_bound(1, 2, 0.95):.1%} of the others" in text


def measured(truth: list[Truth], seeds: int, gap: float) -> np.ndarray:
    draw = generator("detectors", seeds).standard_normal((seeds, len(truth)))
    return draw + gap * np.array([row.label == "memorised" for row in truth])


def test_the_card_counts_what_truth_holds(folder: Path) -> None:
    text = write_card(folder).read_text()
    assert "| fit | 0 | 0 | 0 | 0 | 20 |" in text
    (neighbour,) = (row.split for row in read_truth(folder) if row.label == "neighbour")
    assert f"| development | 4 | 0 | {int(neighbour == 'development')} | 0 | 12 |" in text
    assert f"| test | 6 | 0 | {int(neighbour == 'test')} | 0 | 20 |" in text
    # 6 of 6: Clopper and Pearson's interval.
    assert "| exact | 40 | 40 | 6 | 100% (54% to 100%) | 6 | 0 |" in text
    assert "2 minutes in all" in text
    assert "torch 9.9" in text
    assert "Detectors" not in text


def test_every_look_at_the_test_split_is_in_the_card(folder: Path) -> None:
    assert "Looks at the test split" not in write_card(folder).read_text()
    log_touch(folder, ["residual_gap", "noise_gap"], "first table")
    log_touch(folder, ["mean_free_gap"], "a metric landed")
    text = write_card(folder).read_text()
    assert "| first table | residual_gap, noise_gap |" in text
    assert text.index("first table") < text.index("| a metric landed | mean_free_gap |")


def test_the_table_counts_prompts_and_finds_a_perfect_detector(folder: Path) -> None:
    truth = [row for row in read_truth(folder) if row.split == "test" and row.label in ("memorised", "harmless")]
    scores = {"residual_gap": measured(truth, 5, 100.0), "sharpness": measured(truth, 2, 0.0)}
    draw = generator("calibration")
    calibration = {metric: draw.standard_normal((len(rows), 99)) for metric, rows in scores.items()}
    lines = table(truth, scores, calibration)
    perfect = [line for line in lines if line["metric"] == "residual_gap" and "fpr_at_p" not in line["statistic"]]
    assert all(line["mean"] == line["minimum"] == 1.0 for line in perfect)
    rates = [line["mean"] for line in lines if line["statistic"] == "fpr_at_p_1_percent" and line["captions"] == "all"]
    assert max(rates) <= 0.05  # at most one of 20 harmless prompts a seed
    assert {line["n"] for line in lines if line["metric"] == "sharpness"} == {1}  # of two seeds, no mean of four
    every = next(line for line in lines if line["plants"] == "exact" and line["captions"] == "all")
    parts = [
        line for line in lines if line["plants"] == "exact" and line["captions"] != "all" and line["statistic"] == "auc"
    ]
    parts = [line for line in parts if (line["metric"], line["n"]) == (every["metric"], every["n"])]
    for count in ("memorised", "harmless"):
        assert sum(line[count] for line in parts) == every[count]
    assert every["harmless"] == 20
    assert {line["seeds"] for line in lines if line["n"] == 1} == {2, 5}
    # One of 20 harmless prompts would decide the threshold of a TPR at .1% FPR.
    assert {line["statistic"] for line in lines} == set(columns(lines)) == {*COLUMNS} - {"tpr_at_0_1_percent_fpr"}
    made = {"intervals": INTERVALS, "lines": lines, "evaluations": {"residual_gap": 1, "sharpness": 3}}
    (folder / DETECTORS["test"]).write_text(json.dumps(made))
    text = write_card(folder).read_text()
    assert ".1% FPR" not in text
    assert "in brackets the 95% interval of the mean" in text
    assert "## Detectors, test split" in text
    assert "| residual_gap | 1 | 1 | exact | all | 5 |" in text
    assert "| residual_gap | 4 | 4 | exact | all | 1 |" in text


def test_intervals_that_were_made_without_the_noise_of_a_threshold_are_not_shown(folder: Path) -> None:
    line = {"metric": "noise_gap", "n": 1, "seeds": 1, "plants": "exact", "captions": "all", "memorised": 9}
    line |= {"harmless": 20, "mean": 0.5, "sd": None, "minimum": 0.5, "maximum": 0.5, "low": 0.47, "high": 0.53}
    lines = [line | {"statistic": name} for name in COLUMNS]
    for intervals in ({}, {"intervals": INTERVALS}):
        made = intervals | {"lines": lines, "evaluations": {"noise_gap": 1}}
        (folder / DETECTORS["test"]).write_text(json.dumps(made))
        text = write_card(folder).read_text()
        assert ("0.500 (0.470 to 0.530)" in text) == bool(intervals)
        assert ("intervals are left out" in text) != bool(intervals)


def test_a_statistic_is_told_from_as_many_harmless_prompts_as_it_needs() -> None:
    assert "tpr_at_0_1_percent_fpr" in columns([{"harmless": 5000}, {"harmless": 500}])
    assert "tpr_at_0_1_percent_fpr" not in columns([{"harmless": 4999}])


def test_minutes_of_a_resumed_training_are_those_of_both_processes(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text("\n".join(json.dumps({"seconds": s}) for s in (1, 60, 120, 3, 60)))
    assert minutes(log) == 3.0
