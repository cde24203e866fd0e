"""The simulation of decisions: its means, its goals, and that a broken rule misses them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from pipelines.bench import copying, decisions, families, intervals
from pipelines.bench.decisions import Mean, bench_lines, coverage, markdown, mean, power_by_size, shared_sets, simulate
from pipelines.bench.lines import Line, unmet, write_json
from pipelines.cli import cli
from pipelines.commands.bench import DRAWS


@pytest.fixture(scope="module")
def found() -> decisions.Simulated:
    return simulate(draws=6, control_draws=120)


def test_a_mean_carries_two_standard_errors_of_what_is_defined() -> None:
    values = [1.0, 2.0, 3.0, np.nan]
    error = 2 * np.std([1, 2, 3], ddof=1) / np.sqrt(3)
    assert mean(values) == Mean(2.0, pytest.approx(2 - error), pytest.approx(2 + error), 3)
    assert mean([np.nan]).n == 0


def test_what_is_promised_holds_in_the_simulation(found: decisions.Simulated) -> None:
    lines = list(bench_lines(found))
    assert unmet(lines, []) == []
    assert {line.name for line in lines if line.goal is not None} >= {
        "decisions.fpr.memorised_0.low",
        "decisions.fdr.benjamini-hochberg.memorised_1.low",
        "decisions.fdr.benjamini-yekutieli.memorised_10.low",
        "decisions.coverage.missed.controls_60.high",
    }


def test_a_rule_that_flags_too_much_misses_its_goal(found: decisions.Simulated) -> None:
    first = found.rates[0]
    wrong = replace(found, rates=[replace(first, false_positive=Mean(0.06, 0.05, 0.07, 12)), *found.rates[1:]])
    assert unmet(list(bench_lines(wrong)), []) == ["decisions.fpr.memorised_0.low is 0.05 share, the goal 0.01"]


@pytest.mark.chaos
def test_calibrating_on_the_fit_prompts_multiplies_the_rate() -> None:
    found = shared_sets(6)
    assert found["on other prompts"].value < 0.03
    assert found["on the fit prompts"].value > 0.1


def test_power_needs_calibration_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """10,000 prompts, 100 memorised, q = .1: with fewer than 999 nothing can be found."""
    monkeypatch.setattr(decisions, "SIZES", (99, 4999))
    few, many = power_by_size(4)
    assert few[1].value == 0
    assert many[1].value > 0.5


def test_more_controls_bound_misses_tighter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "CONTROLS", (0, 60, 1000))
    none, few, many, hard = coverage(100)
    assert (few.strata, hard.strata, hard.controls) == ("five strata", "one stratum", 60)
    assert hard.missed.value > 0.95
    total = sum(size for size, _ in decisions.STRATA)
    assert (none.bound.value, none.estimate.n) == (total, 0)
    assert total > few.bound.value > many.bound.value
    assert few.least_recall.value < many.least_recall.value


def test_the_command_writes_both_forms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: decisions.Simulated
) -> None:
    monkeypatch.setattr(decisions, "simulate", lambda *_: found)
    copies = copying.simulate(draws=20)
    monkeypatch.setattr(copying, "simulate", lambda *_: copies)
    result = CliRunner().invoke(cli, ["bench", "decisions", "--json", str(tmp_path / "d.json")])
    assert (result.exit_code, result.output) == (0, f"{markdown(found)}\n{copying.markdown(copies)}")
    told = json.loads((tmp_path / "d.json").read_text())
    assert {tuple(line) for line in told} == {("name", "value", "unit", "n", "low", "high", "goal", "met")}


def test_a_goal_may_be_the_most(tmp_path: Path) -> None:
    below, above = (Line("seconds", value, "s", 1, goal=2.0, at_most=True) for value in (1.0, 3.0))
    assert (below.met, above.met) == (True, False)
    assert unmet([below, above], []) == ["seconds is 3 s, the goal 2"]
    write_json(tmp_path / "x.json", [below])
    assert "at_most" not in json.loads((tmp_path / "x.json").read_text())[0]


def test_the_command_simulates_as_many_draws_as_the_tables_are_made_with() -> None:
    assert {module.DRAWS for module in (decisions, families, intervals)} == {DRAWS}
    assert {decisions.CONTROL_DRAWS, copying.DRAWS} == {10 * DRAWS}
