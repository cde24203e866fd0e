"""What people ask of a run: views and macros against the tables, the page of queries, and frames for analysts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import sharpaudit
from sharpaudit import analysis
from sharpaudit.errors import IntegrityError, UserError
from sharpaudit.tables.runs import RunFolder
from sharpaudit.tables.schemas import SCORES
from sharpaudit.tables.views import VIEWS
from tests.support.audits import audit, command, finish, flip, tables
from tests.support.shells import bare

QUERIES = Path(__file__).parents[2] / "docs/queries.md"


@pytest.fixture(scope="module")
def run(clean: Path) -> analysis.Run:
    with sharpaudit.open_run(clean) as opened:
        yield opened


def rows(run: analysis.Run, sql: str) -> list[dict[str, Any]]:
    return list(run.sql(sql).to_pylist())


def test_risk_has_one_row_for_each_audited_prompt_with_its_evidence(run: analysis.Run, clean: Path) -> None:
    made = tables(clean)
    sampled = {row["prompt_id"] for row in made["samples"]}
    of_sample = {row["sample_id"]: row["prompt_id"] for row in made["samples"]}
    copied = {of_sample[row["sample_id"]] for row in made["matches"] if row["rank"] == 1 and row["band"] == "copy"}
    audited = {row["prompt_id"]: row for row in made["triage"] if row["role"] == "audit"}
    found = {row["prompt_id"]: row for row in rows(run, "from risk")}
    assert found.keys() == audited.keys()
    for name, row in found.items():
        grade = "copy" if name in copied else "generated, no copy" if name in sampled else "score only"
        assert row["evidence"] == grade
        assert (row["p_value"], row["flagged"]) == (audited[name]["p_value"], audited[name]["flagged"])
    assert {row["prompt_id"] for row in rows(run, "from findings")} == copied & audited.keys() != set()


def test_the_wide_table_holds_every_score(run: analysis.Run, clean: Path) -> None:
    wide = {row["prompt_id"]: row for row in rows(run, "from prompt_metrics")}
    scores = tables(clean)["scores"]
    assert wide.keys() == {row["prompt_id"] for row in scores}
    for row in scores:
        assert wide[row["prompt_id"]][row["metric"]] == row["value"]


def test_a_rank_is_the_place_among_the_prompts_of_a_role(run: analysis.Run, clean: Path) -> None:
    roles = {row["prompt_id"]: row["role"] for row in tables(clean)["corpus"]}
    metrics = {row["prompt_id"]: row for row in rows(run, "from prompt_metrics")}
    ranks = {row["prompt_id"]: row for row in rows(run, "from prompt_ranks")}
    assert ranks.keys() == metrics.keys()
    for name, row in ranks.items():
        peers = [other["noise_gap"] for peer, other in metrics.items() if roles[peer] == roles[name]]
        assert row["noise_gap"] == 1 + sum(value > metrics[name]["noise_gap"] for value in peers)
    with duckdb.connect(str(clean / "audit.duckdb"), read_only=True) as kept:
        assert sorted(kept.sql("from prompt_ranks").fetchall()) == sorted(tuple(row.values()) for row in ranks.values())


def test_families_and_coverage_add_up(run: analysis.Run, clean: Path) -> None:
    made = tables(clean)
    audited = [row for row in made["triage"] if row["role"] == "audit"]
    families = rows(run, "from families")
    assert sum(row["n_prompts"] for row in families) == len(audited)
    assert sum(row["n_flagged"] for row in families) == sum(row["flagged"] for row in audited)
    assert sum(row["n_findings"] for row in families) == len(rows(run, "from findings"))
    coverage = {row["role"]: row for row in rows(run, "from coverage")}
    roles = Counter(row["role"] for row in made["corpus"])
    assert {role: row["prompts"] for role, row in coverage.items()} == roles
    assert coverage["audit"]["scored"] == coverage["audit"]["decided"] == roles["audit"]
    assert coverage["fit"]["scored"] == coverage["fit"]["decided"] == 0
    generated = {row["prompt_id"] for row in made["samples"]}
    assert sum(row["generated"] for row in coverage.values()) == len(generated)


@pytest.fixture(scope="module")
def labelled(config_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smaller audit with labels, a rejected row and duplicates."""
    folder = tmp_path_factory.mktemp("labelled")
    lines = (config_path.parent / "testbed/prompts/audit.csv").read_text().splitlines()[1:]
    table = [f"{line},{'de' if i % 3 else 'fr'}" for i, line in enumerate(lines)]
    (folder / "audit.csv").write_text("\n".join(["id,prompt,language", *table, "x,,en", f"{lines[0]},en"]) + "\n")
    root = folder / "run"
    audit(config_path, root, f"corpus.audit={folder / 'audit.csv'}", 'corpus.labels=["language"]', "run.max_rejected=1")
    return root


def test_labels_slice_and_errors_are_listed(labelled: Path) -> None:
    with sharpaudit.open_run(labelled) as run:
        found = {row["value"]: row for row in rows(run, "from by_label('language')")}
        n = Counter(row["labels"][0][1] for row in tables(labelled)["origins"] if row["source"].startswith("audit:"))
        # The blank row has no prompt; the repeated one counts in both languages.
        assert {name: row["n_prompts"] for name, row in found.items()} == {"de": n["de"], "fr": n["fr"], "en": 1}
        total = rows(run, "select count(*) as n from findings")[0]["n"]
        first = rows(run, "select count(*) as n from by_label('language') where n_findings > 0")[0]["n"]
        assert total >= first > 0
        (error,) = rows(run, "from errors")
        assert (error["stage"], error["table_name"], error["status"]) == ("ingest", "origins", "empty")
        assert error["key"].startswith("audit:audit.csv ")


def test_the_matches_of_a_prompt_are_those_of_its_samples(run: analysis.Run, clean: Path) -> None:
    prompt = rows(run, "select prompt_id from findings limit 1")[0]["prompt_id"]
    found = rows(run, f"from matches_of('{prompt}')")
    samples = {row["sample_id"] for row in tables(clean)["samples"] if row["prompt_id"] == prompt}
    expected = [row["similarity"] for row in tables(clean)["matches"] if row["sample_id"] in samples]
    assert [row["similarity"] for row in found] == sorted(expected, reverse=True)


def numbered() -> dict[int, str]:
    text = QUERIES.read_text()
    return {
        int(n): sql for n, sql in re.findall(r"\n(\d+)\. [^\n]*(?:\n[^\n`]+)*\n\n```sql\n(.*?)```", text, re.DOTALL)
    }


def test_the_queries_of_the_page_are_numbered() -> None:
    assert list(numbered()) == list(range(1, 23))


@pytest.mark.parametrize("number", range(1, 23))
def test_each_query_of_the_page_runs_and_answers(run: analysis.Run, labelled: Path, number: int) -> None:
    answer = rows(run, numbered()[number])
    with sharpaudit.open_run(labelled) as other:
        assert answer or rows(other, numbered()[number]) or number in NOTHING_THERE
    with duckdb.connect(str(run.root / "audit.duckdb"), read_only=True) as client:
        assert len(client.sql(numbered()[number]).fetchall()) == len(answer)


NOTHING_THERE = {5, 8, 21}
"""Nothing is rejected, no control copies and no prompt is cut in these audits."""


def test_queries_of_the_page_say_what_the_tables_say(run: analysis.Run, clean: Path) -> None:
    made = tables(clean)
    assert sum(row["prompts"] for row in rows(run, numbered()[10])) == 49
    drawn = rows(run, numbered()[4])
    assert sum(row["drawn"] for row in drawn) == 6
    audited = [row for row in made["triage"] if row["role"] == "audit"]
    assert sum(row["unflagged"] for row in drawn) == sum(not row["flagged"] for row in audited)
    assert len(rows(run, numbered()[13])) == 2
    assert 0 < rows(run, numbered()[15])[0]["spearman"] <= 1
    cost = {row["stage"]: row["evaluations"] for row in rows(run, numbered()[22])}
    assert cost["sample"] == sum(row["evaluations"] for row in made["samples"])


def test_frames_hold_the_same_rows(run: analysis.Run) -> None:
    arrow, pandas, polars = (run.findings(to=kind) for kind in ("arrow", "pandas", "polars"))
    assert isinstance(arrow, pa.Table)
    assert isinstance(pandas, pd.DataFrame)
    assert isinstance(polars, pl.DataFrame)
    assert arrow["prompt_id"].to_pylist() == pandas["prompt_id"].tolist() == polars["prompt_id"].to_list() != []
    assert pandas["best_similarity"].is_monotonic_decreasing
    # The view of mitigations is there where some were tried.
    there = [name for name in VIEWS if name != "mitigated"]
    assert all(len(run.view(name)) == len(rows(run, f"from {name}")) for name in there)


def test_an_analyst_can_only_read_and_is_told_what_is_wrong(run: analysis.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for call, words in (
        (lambda: run.sql("create table x as select 1"), "one reading statement"),
        (lambda: run.view("fndings"), '"fndings" is no view; there are findings, risk'),
        (lambda: run.sql("select 1", to="excel"), 'to = "excel"'),
        (lambda: sharpaudit.open_run("/nowhere"), "no run here"),
    ):
        with pytest.raises(UserError, match=re.escape(words)):
            call()
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(UserError, match=re.escape('pip install "sharpaudit[analysis]"')):
        run.findings(to="polars")


def test_a_damaged_run_is_not_opened(clean: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(clean, tmp_path / "run"))
    folder = RunFolder.open(copy).table(SCORES)
    flip(folder.path(folder.current()[0]))
    with pytest.raises(IntegrityError):
        sharpaudit.open_run(copy)


def test_the_package_opens_a_run_without_torch_or_ray(clean: Path) -> None:
    code = (
        f"import sharpaudit, sys; n = len(sharpaudit.open_run({str(clean)!r}).findings()); "
        "print(n, {'torch', 'ray'} & set(sys.modules))"
    )
    told = subprocess.run([sys.executable, "-c", code], env=bare(), capture_output=True, text=True, check=True)
    assert told.stdout.split(maxsplit=1)[1].strip() == "set()"


def test_an_answer_is_written_to_a_file(clean: Path, tmp_path: Path) -> None:
    sql = "select prompt_id, value from risk order by prompt_id"
    code, out, err = finish(command("query", clean, sql, "--format", "parquet", "--out", tmp_path / "x.parquet"))
    assert (code, out) == (0, ""), err
    written = pq.read_table(tmp_path / "x.parquet")
    with sharpaudit.open_run(clean) as run:
        assert written.equals(run.sql(sql))
    code, _, err = finish(command("query", clean, sql, "--format", "parquet"))
    assert (code, err.count("\n")) == (2, 1)
    assert "--out FILE" in err
    code, _, _ = finish(command("query", clean, sql, "--format", "json", "--out", tmp_path / "x.json"))
    assert len(json.loads((tmp_path / "x.json").read_text())) == len(written)
