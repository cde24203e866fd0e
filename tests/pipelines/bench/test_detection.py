"""Benches: labels come last, nothing is scored twice, and a goal that is missed is said."""

from __future__ import annotations

import csv
import json
import os
import shutil
import tomllib
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from pipelines.bench import recombined
from pipelines.bench.detection import (
    GOALS,
    Configured,
    Detection,
    LabSplit,
    _scored,
    _values,
    at_first_seed,
    bench_lines,
    detect,
    markdown,
)
from pipelines.bench.figures import distributions
from pipelines.bench.lines import Line, unmet, write_json
from pipelines.cli import cli
from pipelines.flow.progress import Reporter
from sharpaudit.config import load
from sharpaudit.errors import UserError
from sharpaudit.lab.analytic import Sizes, write
from sharpaudit.lab.detectors import GROUPS
from sharpaudit.seeds import generator
from sharpaudit.tables.runs import RunFolder
from sharpaudit.tables.schemas import SCORES, TRIAGE

LABELS = {"strong": ("exact", "memorised"), "weak": ("exact", "partly"), "harmless": ("unseen", "harmless")}
OVERRIDES = ("scores.components=10",)
USES = {"fit": "fit", "calibrate": "calibration"}
CONFIGS = Path(__file__).parents[3] / "configs" / "audits"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lab folder around the analytic testbed: its harmless prompts are halved to fit and to calibrate."""
    folder = tmp_path_factory.mktemp("bench") / "lab"
    write(folder / "model", Sizes(strong=6, weak=3, audited_harmless=40, harmless=240, other_references=12))
    shutil.move(folder / "model" / "index", folder / "references")
    audited = rows_of(folder / "model" / "truth.csv")
    harmless = [row["prompt"] for row in rows_of(folder / "model" / "prompts" / "harmless.csv")]
    splits = {"test": [row["prompt"] for row in audited], "fit": harmless[::2], "calibration": harmless[1::2]}
    (folder / "prompts").mkdir()
    for name, prompts in splits.items():
        with (folder / "prompts" / f"{name}.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows([["prompt", "family"], *[[prompt, prompt] for prompt in prompts]])
    with (folder / "truth.csv").open("w", newline="") as stream:
        known = [[row["prompt"], "test", row["prompt"], *LABELS[row["kind"]]] for row in audited]
        csv.writer(stream).writerows([["prompt", "split", "family", "kind", "label"], *known])
    return folder


def run_bench(folder: Path, out: Path) -> Detection:
    with Path(os.devnull).open("w") as quiet:
        return detect(LabSplit(folder, "test", OVERRIDES), out, reporter=Reporter(out, quiet))


@pytest.fixture(scope="module")
def found(folder: Path) -> tuple[Path, Detection]:
    out = folder.parent / "scores"
    return out, run_bench(folder, out)


def one(found: Detection, **wanted: Any) -> dict[str, Any]:
    (line,) = [line for line in found.lines if all(line[key] == value for key, value in wanted.items())]
    return line


def test_the_screen_that_decides_finds_what_is_memorised(found: tuple[Path, Detection]) -> None:
    head = {"metric": "residual_gap", "plants": "exact", "captions": "all"}
    for n, seeds in ((1, 4), (4, 1)):
        line = one(found[1], **head, n=n, statistic="auc")
        assert (line["seeds"], line["memorised"], line["harmless"]) == (seeds, 6, 40)
        assert line["mean"] > 0.99
        assert line["low"] <= line["mean"] <= line["high"]
        # Of 120 calibration prompts p <= .01 lets none reach the score.
        assert one(found[1], **head, n=n, statistic="tpr_at_p_1_percent")["mean"] > 0.8
        assert one(found[1], **head, n=n, statistic="fpr_at_p_1_percent")["maximum"] <= 0.1


def test_each_seed_is_an_audit_of_its_own(found: tuple[Path, Detection]) -> None:
    runs = [RunFolder.open(found[0] / f"seed-{seed}") for seed in range(4)]
    assert [run.config().seed for run in runs] == [0, 1, 2, 3]
    assert all(run.table(TRIAGE).manifests() == [] for run in runs)
    shards = [{m.sha256 for m in run.table(SCORES).manifests()} for run in runs]
    assert not shards[0] & shards[1]
    line = one(found[1], metric="noise_gap", n=1, plants="exact", captions="all", statistic="auc")
    assert line["minimum"] <= line["mean"] <= line["maximum"]


def test_nothing_is_scored_again(found: tuple[Path, Detection], folder: Path) -> None:
    written = {path: path.stat().st_mtime_ns for path in found[0].rglob("*.parquet")}
    assert run_bench(folder, found[0]).lines == found[1].lines
    assert {path: path.stat().st_mtime_ns for path in found[0].rglob("*.parquet")} == written


def test_the_cost_of_each_metric_is_that_of_its_plan(found: tuple[Path, Detection]) -> None:
    several = {"sharpness": 3, "norm_cosine": 2, "hessian_trace": 2}
    assert found[1].as_json()["evaluations"] == dict.fromkeys(found[1].cost, 1) | several
    assert "attention_entropy" not in found[1].cost  # the analytic model has none
    assert all(ms > 0 for _, ms in found[1].cost.values())


def test_the_table_has_a_line_for_each_metric_and_number_of_seeds(found: tuple[Path, Detection]) -> None:
    text = markdown(found[1])
    # All captions, those that name no colour (the testbed has no others), and three groups for the partly memorised.
    assert text.count("\n| residual_gap | 1 |") == text.count("\n| residual_gap | 4 |") == 5
    titles = [line for line in text.splitlines() if line and not line.startswith("|")]
    partly = [f"{GROUPS[group]}, all captions" for group in ("partly", "others_memorised", "others_harmless")]
    assert titles == ["exact plants, all captions", "exact plants, captions naming none", *partly]
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def test_goals_are_those_of_the_screen_that_decides(found: tuple[Path, Detection], tmp_path: Path) -> None:
    lines = list(bench_lines(found[1], GOALS))
    by_name = {line.name: line for line in lines}
    assert {name: line.goal for name, line in by_name.items() if line.goal} == GOALS
    free = one(found[1], metric="sharpness", n=4, plants="exact", captions="naming none", statistic="auc")
    assert by_name["sharpness.n4.free.auc"].value == free["mean"]
    assert by_name["residual_gap.n1.exact.tpr1_low"].value == by_name["residual_gap.n1.exact.tpr1"].low
    assert by_name["noise_gap.n1.exact.auc"].goal is None
    write_json(tmp_path / "x.json", lines)
    for entry in json.loads((tmp_path / "x.json").read_text()):
        assert set(entry) == {"name", "value", "low", "high", "unit", "n", "goal", "met"}


def test_a_goal_that_is_missed_or_not_measured_is_said() -> None:
    lines = [Line("a", 0.5, "share", 3, goal=0.6), Line("b", 0.7, "share", 3, goal=0.6), Line("c", 0.1, "share", 3)]
    assert unmet(lines, ["a", "d"]) == ["a is 0.5 share, the goal 0.6", "d was not measured"]


def test_the_exit_code_says_whether_goals_are_met(found: tuple[Path, Detection], folder: Path, tmp_path: Path) -> None:
    """Six memorised prompts: the lower bound of a rate cannot reach its goal."""
    out = tmp_path / "again"
    shutil.copytree(found[0], out / "test")
    call = ["bench", "detection", str(folder), "--out", str(out), "--set", OVERRIDES[0], "--json", str(tmp_path / "x")]
    outcome = CliRunner().invoke(cli, call)
    assert outcome.exit_code == 1, outcome.output
    assert "residual_gap.n1.exact.tpr1_low is" in outcome.output
    assert "Measured on" in outcome.output
    values = {entry["name"]: entry for entry in json.loads((tmp_path / "x").read_text())}
    assert values["detection.minutes"]["met"]
    assert values["residual_gap.n1.exact.auc_worst"]["n"] == 4
    table = (out / "test" / "table.md").read_text()
    assert table in outcome.output
    lines = json.loads((out / "test" / "table.json").read_text())["lines"]
    assert {line["statistic"] for line in lines} >= {"auc", "tpr_at_3_percent_fpr", "fpr_at_p_1_percent"}


def test_a_prompt_without_a_label_is_named(found: tuple[Path, Detection], folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "lab"
    shutil.copytree(folder, other)
    lines = (other / "truth.csv").read_text().splitlines()
    (other / "truth.csv").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(UserError, match="no label of"):
        run_bench(other, found[0])


@pytest.fixture
def reference(folder: Path, tmp_path: Path) -> Path:
    """A config as sd14_reference.toml: memorised prompts as positive controls, harmless ones audited."""
    labels = {row["prompt"]: row["label"] for row in rows_of(folder / "truth.csv")}
    for name, label in (("memorised", "memorised"), ("harmless", "harmless")):
        with (tmp_path / f"{name}.csv").open("w", newline="") as stream:
            rows = [[i, prompt] for i, prompt in enumerate(labels) if labels[prompt] == label]
            csv.writer(stream, delimiter=";").writerows([["", "Caption"], *rows])
    config = tmp_path / "reference.toml"
    config.write_text(f"""
name = "reference"
[model]
path = "{folder}/model"
[corpus]
audit = "harmless.csv"
positive_controls = "memorised.csv"
column = "Caption"
delimiter = ";"
[calibration]
fit = "{folder}/prompts/fit.csv"
calibrate = "{folder}/prompts/calibration.csv"
column = "prompt"
delimiter = ","
[scores]
components = 10
[matches]
index = "{folder}/references"
""")
    return config


def test_any_model_with_known_prompts_gets_the_table(reference: Path, found: tuple[Path, Detection]) -> None:
    with Path(os.devnull).open("w") as quiet:
        out = reference.with_name("scores")
        made = detect(Configured(load(reference)), out, reporter=Reporter(out, quiet))
    line = {"metric": "noise_gap", "n": 1, "plants": "exact", "captions": "all", "statistic": "auc"}
    # The same prompts, model and seeds as the lab's split; ids, and so ties of shards, may differ.
    ours, labs = one(made, **line), one(found[1], **line)
    assert (ours["memorised"], ours["harmless"]) == (6, 40)
    assert ours["mean"] == pytest.approx(labs["mean"], abs=1e-6)
    assert {entry["captions"] for entry in made.lines} == {"all"}
    assert all(entry.goal is None for entry in bench_lines(made, {}))


def test_a_reference_without_memorised_prompts_is_refused(reference: Path) -> None:
    text = reference.read_text().replace('positive_controls = "memorised.csv"\n', "")
    reference.write_text(text)
    with pytest.raises(UserError, match=r"corpus\.positive_controls: a bench needs"):
        detect(Configured(load(reference)), reference.with_name("scores"))


def test_forward_mode_is_shown_on_few_prompts(
    found: tuple[Path, Detection], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.bench.detection.FULL_SEEDS", 5)
    shutil.copytree(found[0], tmp_path / "scores")
    with Path(os.devnull).open("w") as quiet:
        source, reporter = LabSplit(folder, "test", OVERRIDES), Reporter(tmp_path / "scores", quiet)
        made = detect(source, tmp_path / "scores", full=True, reporter=reporter)
    line = one(made, metric="sharpness_jvp", statistic="auc")
    assert (line["n"], line["seeds"], line["memorised"], line["harmless"]) == (1, 1, 6, 40)
    # Every metric at four seeds, those of the shared evaluation at all.
    head = {"n": 1, "plants": "exact", "captions": "all", "statistic": "auc"}
    assert (one(made, metric="noise_gap", **head)["seeds"], one(made, metric="sharpness", **head)["seeds"]) == (5, 4)
    assert made.cost["sharpness_jvp"][0] == 7
    assert made.cost["sharpness_jvp"][1] > 0
    # Forward mode and finite difference of one seed rank these prompts alike.
    near = one(made, metric="sharpness", n=1, plants="exact", captions="all", statistic="auc")
    assert line["mean"] == pytest.approx(near["mean"], abs=0.05)
    (row,) = [text for text in markdown(made).splitlines() if text.startswith("| sharpness_jvp |")]
    assert row.count("not measured") == 2


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_distributions_are_drawn_of_every_group(
    found: tuple[Path, Detection], folder: Path, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"figure.{suffix}"
    distributions(*at_first_seed(LabSplit(folder, "test", OVERRIDES), found[0]), path)
    drawn = path.read_bytes()
    distributions(*at_first_seed(LabSplit(folder, "test", OVERRIDES), found[0]), path)
    assert len(drawn) > 10_000
    if suffix == "svg":
        # Three metrics by two styles; the testbed's captions name no colour.
        assert drawn.count(b'id="axes_') == 6
    else:
        assert path.read_bytes() == drawn


@pytest.mark.chaos
def test_recombined_captions_calibrate_as_harmless_ones_do(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the analytic testbed every caption that is not planted is harmless, whatever its words."""
    monkeypatch.setattr(recombined, "SEEDS", 2)
    # Half and half: so few candidates in the bench's own proportion would leave too few to fit on.
    monkeypatch.setattr(recombined, "FIT", 1)
    monkeypatch.setattr(recombined, "CALIBRATION", 1)
    with Path(os.devnull).open("w") as quiet:
        results = list(recombined.measure(folder, "test", tmp_path / "out", Reporter(tmp_path, quiet), 300))
    assert [(one.calibrated_on, one.judged) for one in results] == [
        ("recombined captions", True),
        ("the lab's harmless prompts", False),
    ]
    assert [one.n_calibration for one in results] == [150, 120]
    # This folder's truth knows of the audited prompts alone; a lab's also of those that it keeps for fitting.
    for one in results:
        assert (one.n_harmless, one.n_memorised, len(one.harmless_flagged)) == (40, 6, 2)
        assert one.rate < 0.15
        assert one.power > 0.9
    page = recombined.markdown(results)
    assert "| recombined captions | 150 |" in page
    assert page.count("at a true rate of 1%") == 1
    # So few prompts cannot see a rate of 2%, and the bench says so.
    assert [text.split()[0] for text in unmet(list(recombined.bench_lines(results)), [])] == [
        "calibration.recombined.power"
    ]


def judged(by_seed: list[int], n_harmless: int = 2_499, n_calibration: int = 4_999) -> list[str]:
    made = recombined.Realised("recombined captions", by_seed, [9] * len(by_seed), n_harmless, 10, n_calibration, True)
    return [text.split()[0] for text in unmet(list(recombined.bench_lines([made])), [])]


def test_the_rule_of_recombined_captions_sees_a_rate_of_two_percent() -> None:
    """Simulated through scores: one calibration set a draw, audited prompts of another rate at its line."""
    rng, n, m = generator("recombined", "rule"), 2_499, 4_999
    failed, most = dict.fromkeys((0.01, 0.02), 0), recombined.most_flagged(n, m)
    for rate, _ in product(failed, range(300)):
        line = np.sort(rng.random(m))[recombined._rank(m) - 1]  # the share of such prompts at or beyond the flag line
        flagged = int((rng.random(n) < line * rate / recombined.ALPHA).sum())
        failed[rate] += flagged > most
    assert failed[0.01] <= 0.05 * 300 + 8
    assert failed[0.02] >= 0.8 * 300
    for rate, times in failed.items():
        assert recombined.chance_to_fail(rate, n, m) == pytest.approx(times / 300, abs=0.06)
    assert recombined.chance_to_fail(0.01, n, m) <= 0.05
    assert recombined.chance_to_fail(0.02, n, m) >= 0.8


def test_what_is_flagged_is_held_against_the_rule_on_average_over_seeds() -> None:
    most = recombined.most_flagged(2_499, 4_999)
    assert 1.3 < 100 * most / 2_499 < 1.6
    assert judged([most] * 4) == []
    assert judged([most + 2, most - 2]) == []
    assert judged([most] * 3 + [most + 4]) == ["calibration.recombined.flagged"]
    # 500 prompts and 1,000 calibration prompts, as once: 2% is seen in fewer than half of all cases.
    assert recombined.chance_to_fail(0.02, 500, 1_000) < 0.5
    assert judged([0], 500, 1_000) == ["calibration.recombined.power"]
    with pytest.raises(UserError, match="99 at least"):
        recombined.most_flagged(500, 98)


def test_captions_of_one_template_are_one_family_of_the_reference(reference: Path) -> None:
    """Intervals count families: the shipped reference joins a catalogue's captions, and no others with them."""
    shipped = tomllib.loads((CONFIGS / "sd14_reference.toml").read_text())["corpus"]["near_duplicates"]
    colours = ("Sahara", "Peanut Brittle", "Tuscany", "Soft Shadow", "Pewter", "Mountain Mist")
    catalogue = [f"Example Carpets Quiet Valley II 12 {colour} 00{i}04_QX42" for i, colour in enumerate(colours)]
    others = ["Two hippos and a very young one, asleep at noon", "The harbour of Bergen before the rain"]
    with reference.with_name("memorised.csv").open("w", newline="") as stream:
        rows = [[i, prompt] for i, prompt in enumerate([*catalogue, *others])]
        csv.writer(stream, delimiter=";").writerows([["", "Caption"], *rows])
    rng = generator("reference", "words")
    for name, head in (("fit", "prompt"), ("calibration", "prompt"), ("harmless", "Caption")):
        words = ["".join(map(chr, row)) for row in rng.integers(ord("a"), ord("z") + 1, size=(120 * 6, 7))]
        written = [[head], *([" ".join(words[i : i + 6])] for i in range(0, len(words), 6))]
        with reference.with_name(f"{name}.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows(written)
    ours = [f'calibration.{use}="{reference.with_name(name)}.csv"' for use, name in USES.items()]

    def families(*overrides: str) -> dict[str, str]:
        source = Configured(load(reference, [*ours, *overrides]))
        out = reference.with_name(f"scores-{len(overrides)}")
        with Path(os.devnull).open("w") as quiet:
            run = _scored(source.audit(0, every=False), out, Reporter(out, quiet))
        prompts, _ = _values(run, source.audit(0, every=False), ("audit", "positive_control"))
        return {row.prompt: row.family for row in source.truth(prompts)}

    alone, joined = families(), families(f"corpus.near_duplicates={shipped}")
    assert len({alone[prompt] for prompt in catalogue}) == len(catalogue)
    assert len({joined[prompt] for prompt in catalogue}) == 1
    assert len({joined[prompt] for prompt in [catalogue[0], *others]}) == 3
