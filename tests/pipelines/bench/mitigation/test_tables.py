"""What is told of settings, on made ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.bench.mitigation.measuring import Attacked, Measured
from pipelines.bench.mitigation.tables import bench_lines, draw, markdown
from tests.support.suppressed import NONE, made


def test_the_goals_are_of_the_best_method_on_the_test_split(tmp_path: Path) -> None:
    found = [NONE, made("a", 1, [0] * 9 + [1], 0.5, 0.35), made("sail", 1, [1] * 10, 0.6, 0.39, evaluations=290)]
    again = Attacked(found[1], {"p0": [False, True], "p1": [False, False]}, {"h": [False, False]})
    more = [NONE, made("a", 1, [0] * 9 + [1], 0.5, 0.35), made("sail", 1, [1] * 10, 0.6, 0.39, evaluations=290)]
    # What is told of the strengths chosen is of MANY pictures, not of the few that stand in the first table.
    found[1] = made("a", 1, [0] * 10, 0.5, 0.3)
    measured = Measured(found, {"a": 1, "sail": 1}, more, [again])
    lines = {line.name: line for line in bench_lines(measured)}
    best = lines["mitigation.best.suppressed"]
    assert (best.value, best.n, best.goal, best.met) == (0.9, 10, 0.8, True)
    assert lines["mitigation.best.alignment_lost"].value == pytest.approx(0.125)
    assert lines["mitigation.best.alignment_lost"].met
    assert lines["mitigation.sail.suppressed"].value == 0
    assert lines["mitigation.sail.times_plain"].value == pytest.approx(5.8)
    recovered = lines["mitigation.attack.a.recovered"]
    assert (recovered.value, recovered.n, lines["mitigation.attack.a.controls"].value) == (0.5, 2, 0)
    shown = markdown(measured)
    assert "| **a** | x = 1 | 10 | 0% | 0.500 | 25% | 0.50 | 50 | 0.10 |" in shown
    assert "| a | x = 1 | 9 of 10 (55% to 100%) |" in shown
    assert "| a | x = 1 | 1 of 2 (1% to 99%) | 25% | 0 of 1 |" in shown
    assert "On 1 harmless prompts" in shown
    assert list(bench_lines(Measured(found, {}))) == []
    assert len(markdown(Measured(found, {})).split("\n\n")) == 2, "of a development split the strengths alone"
    pytest.importorskip("matplotlib")
    draw(found, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_prompts_that_do_not_copy_without_a_method_count_for_none() -> None:
    control, method = made("none", 0, [2, 2, 0, 0], 0.8, 0.4), made("a", 1, [0, 1, 0, 1], 0.5, 0.4)
    assert method.suppressed(control) == {"p0"}
    lines = {line.name: line for line in bench_lines(Measured([control, method], {}, [control, method]))}
    assert (lines["mitigation.best.suppressed"].value, lines["mitigation.best.suppressed"].n) == (0.5, 2)
