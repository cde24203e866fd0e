"""The synthetic run of the SQL bench is whole, its queries are those of the docs, and slow answers miss goals."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

import sharpaudit
from pipelines.bench import sql
from pipelines.bench.lines import unmet
from pipelines.cli import cli
from sharpaudit.errors import UserError

PAGE = Path(__file__).parents[3] / "docs/queries.md"
ROWS = 3 * (4_000 + 999)


@pytest.fixture(scope="module")
def small() -> pytest.MonkeyPatch:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sql, "SHARD", 1_500)
        patch.setattr(sql, "CALIBRATION", 999)
        patch.setattr(sql, "MEMORISED", 0.01)
        patch.setattr(sql, "CONTROLS", 0.05)
        yield patch


@pytest.fixture(scope="module")
def measured(small: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, sql.Measured]:
    root = tmp_path_factory.mktemp("sql") / "run"
    return root, sql.measure(root, ROWS)


def test_the_run_holds_as_many_scores_as_asked_for_and_its_sums_agree(measured: tuple[Path, sql.Measured]) -> None:
    """Facts that do not reconcile end the measurement."""
    root, found = measured
    with sharpaudit.open_run(root) as run:
        assert run.sql("select count(*) as n from scores").to_pylist() == [{"n": ROWS}]
        flagged = run.sql("select count(*) filter (flagged) as f, count(*) as n from risk").to_pylist()[0]
        assert flagged["n"] == 4_000
        assert 0.01 < flagged["f"] / flagged["n"] < 0.05
        assert len(run.findings()) > 10
    # Of the process that built them, whatever this one holds.
    assert 0.05 < found.facts_gib < 0.6


def test_the_queries_are_those_that_the_page_begins_with(measured: tuple[Path, sql.Measured]) -> None:
    def plain(text: str) -> str:
        return " ".join(text.split())

    assert [*map(plain, sql.QUERIES.values())] == [
        plain(text) for text in re.findall(r"```sql\n(.*?)```", PAGE.read_text(), re.DOTALL)[:5]
    ]
    answers = list(measured[1].answers.values())
    assert answers[0] == 20
    assert answers[1] == answers[2] > 10
    assert answers[4] == 0


def fast(found: sql.Measured) -> sql.Measured:
    """The same answers on a machine that meets every goal: what this one takes is no matter of a test."""
    return replace(found, queries=dict.fromkeys(found.queries, 0.1), facts_gib=0.5)


def test_a_slow_answer_and_a_large_process_miss_their_goals(measured: tuple[Path, sql.Measured]) -> None:
    found = fast(measured[1])
    assert unmet(list(sql.bench_lines(found)), []) == []
    first = next(iter(found.queries))
    slow = replace(found, queries=found.queries | {first: 2.5}, facts_gib=1.2)
    assert unmet(list(sql.bench_lines(slow)), []) == [
        "sql.q1 is 2.5 s, the goal 2",
        "sql.facts_gib is 1.2 GiB, the goal 1",
    ]
    nothing = replace(found, answers=found.answers | {first: 0})
    assert unmet(list(sql.bench_lines(nothing)), []) == ["sql.q1.rows is 0 rows, the goal 1"]


def test_the_command_prints_names_that_others_rely_on(
    measured: tuple[Path, sql.Measured], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql, "measure", lambda root, rows: fast(measured[1]))
    result = CliRunner().invoke(cli, ["bench", "sql", "--json", str(tmp_path / "sql.json")])
    assert result.exit_code == 0, result.output
    names = {line["name"] for line in json.loads((tmp_path / "sql.json").read_text())}
    assert names >= {"sql.q1", "sql.q2", "sql.q3", "sql.q4", "sql.q5", "sql.facts_gib"}
    assert "15,000" not in result.output  # figures are those measured
    assert f"{ROWS:,} rows of scores" in result.output


def test_a_run_of_another_version_is_named_and_a_half_written_one_is_none(
    measured: tuple[Path, sql.Measured], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql, "_once", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sql.measure(tmp_path / "run", ROWS)
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(sql, "STAGES", {})
    with pytest.raises(UserError, match="written by another version; remove it"):
        sql.measure(measured[0], ROWS)


def test_too_few_rows_are_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["bench", "sql", "--rows", "10", "--out", str(tmp_path)])
    assert "at least" in str(result.exception)
