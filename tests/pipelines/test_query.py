"""SQL over a run: the views, the lock on everything else, and files that travel."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sharpaudit.errors import IntegrityError, UserError
from sharpaudit.tables.answers import Result, csv_text, render
from sharpaudit.tables.query import connect, query
from sharpaudit.tables.reading import open_connection
from sharpaudit.tables.runs import RunFolder
from sharpaudit.tables.schemas import RUN_TABLES, SCORES
from tests.support.audits import command, finish, tables

QUERIES = Path(__file__).parents[2] / "docs/queries.md"


def ask(root: Path, sql: str) -> list[dict[str, Any]]:
    with open_connection(RunFolder.open(root)) as connection:
        result = query(connection, sql)
    return [dict(zip(result.columns, row, strict=True)) for row in result.rows]


def test_the_views_say_what_the_tables_say(clean: Path) -> None:
    made = tables(clean)
    for table in RUN_TABLES:
        name = table.name.replace("/", "_")
        assert ask(clean, f"select count(*) as n from {name}") == [{"n": len(made[table.name])}]
    best = {row["sample_id"]: row for row in made["matches"] if row["rank"] == 1}
    audited = {row["prompt_id"] for row in made["triage"] if row["role"] == "audit"}
    copied = {row["prompt_id"] for row in best.values() if row["band"] == "copy"} & audited
    found = ask(clean, "select prompt_id, n_copies, n_samples, best_similarity from findings")
    assert {row["prompt_id"] for row in found} == copied != set()
    for row in found:
        own = [m["similarity"] for m in best.values() if m["prompt_id"] == row["prompt_id"]]
        assert (len(own), max(own)) == (row["n_samples"], row["best_similarity"])


def test_the_five_queries_to_begin_with_run_and_answer(clean: Path) -> None:
    queries = re.findall(r"```sql\n(.*?)```", QUERIES.read_text(), re.DOTALL)[:5]
    answers = [ask(clean, sql) for sql in queries]
    assert all(answers[:4])
    assert answers[4] == []  # nothing was rejected
    places = [row[metric] for row in answers[2] for metric in ("residual_gap", "noise_gap", "sharpness")]
    assert min(places) == 1
    assert {row["prompt"] for row in answers[2]} == {row["prompt"] for row in answers[0]}
    assert sum(row["drawn"] for row in answers[3]) == 6


def test_nothing_but_reading_below_the_run_is_possible(clean: Path, tmp_path: Path) -> None:
    for sql in (
        "copy (select 1) to 'out.csv'",
        f"copy (select 1) to '{clean}/out.csv'",
        "create table x as select 1",
        "attach 'x.duckdb'",
        "install httpfs",
        "set enable_external_access = true",
        f"explain analyze copy (select 1) to '{clean}/out.csv'",
        f"with x as (copy (select 1) to '{clean}/out.csv') select 1",
        "select 1; select 2",
        "",
        "select * from read_csv('/etc/passwd')",
        "select count(*) from read_text('/etc/passwd')",
        "select * from 'https://example.org/x.parquet'",
        "selec 1",
        "select * from nowhere",
        "select '\ud800'",
    ):
        with pytest.raises(UserError) as caught:
            ask(clean, sql)
        assert "\n" not in str(caught.value)
    assert not (clean / "out.csv").exists()


def test_a_number_that_is_none_never_tops_a_list(tmp_path: Path) -> None:
    rows = [
        {"prompt_id": name, "tier": 1, "metric": "m", "value": value, "status": "ok"}
        for name, value in (("a", 1.0), ("b", math.nan), ("c", math.inf), ("d", 2.0))
    ]
    path = tmp_path / "scores.parquet"
    pq.write_table(pa.Table.from_pylist(rows, SCORES.schema), path)
    connection = connect({"scores": [path]}, tmp_path)
    found = query(connection, "select prompt_id, value from scores order by value desc").rows
    assert found[:2] == [("d", 2.0), ("a", 1.0)]
    assert query(connection, "select max(value), avg(value) from scores").rows == [(2.0, 1.5)]
    connection.close()


def test_a_run_without_files_has_empty_tables(tmp_path: Path) -> None:
    connection = connect({}, tmp_path)
    for table in RUN_TABLES:
        assert query(connection, f"select * from {table.name.replace('/', '_')}").rows == []
    assert query(connection, "from findings").rows == []
    connection.close()


def test_a_damaged_file_is_refused_before_sql_sees_it(clean: Path, tmp_path: Path) -> None:
    shutil.copytree(clean, tmp_path / "run")
    folder = RunFolder.open(tmp_path / "run").table(SCORES)
    path = folder.path(folder.manifests()[0])
    path.write_bytes(path.read_bytes().replace(b"residual", b"residuel", 1) + b" ")
    with pytest.raises(IntegrityError, match=path.name):
        ask(tmp_path / "run", "select 1")


def test_the_database_opens_from_another_folder(clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(clean / "audit.duckdb", tmp_path / "elsewhere.duckdb")
    monkeypatch.chdir(tmp_path)
    with duckdb.connect("elsewhere.duckdb", read_only=True) as connection:
        rows = connection.sql("select prompt_id from findings order by prompt_id").fetchall()
        version = connection.sql("select tags from duckdb_databases() where database_name = 'elsewhere'").fetchall()
    assert [row[0] for row in rows] == [r["prompt_id"] for r in ask(clean, "select prompt_id from findings order by 1")]
    assert "v1.2.0" in str(version)


HOSTILE = ["=1+1", "+1", "-1", "@x", "\tx", "\rx", "a,b", 'say "hi"', "two\nlines", "\u202eright"]


def test_csv_comes_back_whole_and_holds_no_formula() -> None:
    text = csv_text(["a", "n"], [[value, i] for i, value in enumerate(HOSTILE)])
    rows = list(csv.reader(io.StringIO(text, newline="")))[1:]
    assert [row[0].removeprefix("'") for row in rows] == HOSTILE
    assert not any(row[0][:1] in "=+-@\t\r" for row in rows)


def test_json_is_strict_and_a_table_is_printable() -> None:
    result = Result(["x", "y"], [(math.nan, "a\x1b[31m"), (b"\x00\xff", {"k": [1.5, math.inf]})])
    assert json.loads(render(result, "json"), parse_constant=pytest.fail) == [
        {"x": None, "y": "a\x1b[31m"},
        {"x": "00ff", "y": {"k": [1.5, None]}},
    ]
    assert all(line.isprintable() for line in render(result, "table").splitlines())
    assert render(Result(["x"], [(1,)]), "table").endswith("(1 row)\n")


@pytest.mark.parametrize("form", ["table", "csv", "json"])
def test_the_command_prints_each_format(clean: Path, form: str) -> None:
    code, out, err = finish(command("query", clean, "select count(*) as n from corpus", "--format", form))
    assert code == 0, err
    assert str(len(tables(clean)["corpus"])) in out
