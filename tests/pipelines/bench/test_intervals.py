"""The simulation of intervals: ours hold where others do not, and one that is too short misses its goal."""

from __future__ import annotations

from dataclasses import replace

from pipelines.bench.decisions import Mean
from pipelines.bench.intervals import LAWS, bench_lines, case, markdown
from pipelines.bench.lines import unmet


def test_the_interval_holds_where_the_threshold_taken_for_known_does_not() -> None:
    found = case("tpr", 106, 1000, 1, LAWS[0], 60)
    assert unmet(list(bench_lines([found])), []) == []
    assert found.known is not None
    assert found.known.high < 0.8
    short = replace(found, held=Mean(0.8, 0.75, 0.85, 60))
    assert [text.split(" is ")[0] for text in unmet(list(bench_lines([short])), [])] == [
        "intervals.tpr.memorised_106.harmless_1000.seeds_1.law_2.33_0.3.high"
    ]


def test_the_bootstrap_is_too_short_near_one() -> None:
    found = case("tpr", 17, 1000, 1, LAWS[2], 60)
    assert found.bootstrap is not None
    assert found.bootstrap.high < 0.95 <= found.held.value


def test_a_mean_over_seeds_has_its_row() -> None:
    found = [case("tpr", 17, 100, 4, LAWS[1], 3), case("auc", 17, 100, 1, LAWS[1], 3)]
    text = markdown(found)
    assert "| TPR at 1% FPR | 17 | 100 | 4 | N(2.33, 1²) | 0.501 |  |  |" in text
    assert "| AUC | 17 | 100 | 1 |" in text
