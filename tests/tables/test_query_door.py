"""The door to SQL on tables made by hand: it reads, and does nothing else."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sharpaudit.errors import UserError
from sharpaudit.tables.answers import render
from sharpaudit.tables.query import Connection, connect, materialise, query
from sharpaudit.tables.schemas import CORPUS, SCORES, UNCONDITIONAL, Table
from tests.support.shells import bare

OK = {"status": "ok"}


def write(root: Path, table: Table, rows: list[dict[str, Any]]) -> list[Path]:
    path = root / f"{table.name.replace('/', '_')} it's.parquet"
    pq.write_table(pa.Table.from_pylist([row | OK for row in rows], table.schema), path)
    return [path]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, list[Path]]:
    root = tmp_path / "run"
    root.mkdir()
    values = [1.0, math.nan, math.inf, -math.inf, 2.0]
    score = {"tier": 1, "metric": "m", "seed_values": [*values]}
    prompts = [{"prompt_id": str(i), "prompt": f"p{i}", "role": "audit", "model_input_id": "same"} for i in range(2)]
    return {
        "scores": write(root, SCORES, [score | {"prompt_id": str(i), "value": v} for i, v in enumerate(values)]),
        "corpus": write(root, CORPUS, prompts),
        "fit/unconditional": write(
            root, UNCONDITIONAL, [{"seed_index": 0, "place": "first", "x0_hat": [1.0, math.nan]}]
        ),
    }


@pytest.fixture
def door(files: dict[str, list[Path]], tmp_path: Path) -> Iterator[Connection]:
    connection = connect(files, tmp_path / "run")
    yield connection
    connection.close()


WRITES = [
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{}'",
    "WITH x AS (COPY (SELECT 1) TO '{}') SELECT * FROM x",
    "WITH x AS (COPY (SELECT 1) TO '{}') FROM corpus",
    "FROM (WITH x AS (COPY (SELECT 1) TO '{}') FROM x)",
    "FROM query('WITH x AS (COPY (SELECT 1) TO ''{}'') FROM x')",
    "SELECT 1) ; COPY (SELECT 1) TO '{}'; --",
    "SELECT 1'); COPY (SELECT 1) TO '{}'; --",
    "COPY (SELECT 1) TO '{}'",
    "EXPORT DATABASE '{}'",
    "ATTACH '{}'",
]


@pytest.mark.parametrize("sql", WRITES)
def test_no_statement_writes_below_the_root(door: Connection, files: dict[str, list[Path]], sql: str) -> None:
    target = files["scores"][0]
    before = target.read_bytes()
    for path in (target, target.with_name("new")):
        with pytest.raises(UserError) as caught:
            query(door, sql.format(str(path).replace("'", "''" if "''" not in sql else "''''")))
        assert "\n" not in str(caught.value)
    assert target.read_bytes() == before
    assert len(list(target.parent.iterdir())) == len(files)


@pytest.mark.parametrize(
    "sql",
    [
        "WITH x AS (INSERT INTO empty_triage (prompt_id, status) VALUES ('z', 'ok') RETURNING *) FROM x",
        "WITH x AS (DELETE FROM empty_triage RETURNING *) FROM x",
        "EXPLAIN ANALYZE INSERT INTO empty_triage (prompt_id, status) VALUES ('z', 'ok')",
        "EXPLAIN ANALYZE CREATE TABLE z AS SELECT 1",
        "CREATE OR REPLACE VIEW corpus AS SELECT 1",
    ],
)
def test_no_statement_changes_what_the_next_one_sees(door: Connection, sql: str) -> None:
    with pytest.raises(UserError, match="exactly one reading statement"):
        query(door, sql)
    assert query(door, "SELECT count(*) FROM triage").rows == [(0,)]
    assert query(door, "SELECT count(*) FROM corpus").rows == [(2,)]


@pytest.mark.parametrize(
    "source", ["read_text('/etc/passwd')", "read_text('{}/secret')", "read_text('{}/run/../secret')", "glob('{}/*')"]
)
def test_nothing_outside_is_read(door: Connection, tmp_path: Path, source: str) -> None:
    (tmp_path / "secret").write_text("secret")
    with pytest.raises(UserError, match="disabled by configuration"):
        query(door, f"SELECT count(*) FROM {source.format(tmp_path)}")


@pytest.mark.parametrize("sql", ["select 1 as a;", "  SELECT 1 AS a -- last word", "with x as (select 1 a) from x ;  "])
def test_a_statement_may_end_as_people_end_it(door: Connection, sql: str) -> None:
    assert query(door, sql).rows == [(1,)]


def test_order_is_kept(door: Connection) -> None:
    rows = query(door, "SELECT hash(i) AS h FROM range(200000) t(i) ORDER BY h DESC").rows
    assert rows == sorted(rows, reverse=True)


def test_numbers_in_lists_are_finite_as_well(door: Connection) -> None:
    assert query(door, "SELECT max(v), avg(v) FROM (SELECT unnest(seed_values) v FROM scores)").rows == [(2.0, 1.5)]
    assert query(door, "SELECT x0_hat FROM fit_unconditional").rows == [([1.0, None],)]
    assert query(door, "SELECT prompt_id FROM scores ORDER BY value DESC NULLS LAST LIMIT 1").rows == [("4",)]


def test_columns_of_one_name_all_arrive(door: Connection) -> None:
    (row,) = json.loads(render(query(door, "SELECT 1 AS a, 2 AS a"), "json"))
    assert sorted(row.values()) == [1, 2]


def test_each_format_takes_each_type(door: Connection) -> None:
    sql = """SELECT DATE '2020-01-02' d, 1.50::DECIMAL(5,2) e, '\\xFF'::BLOB b, 'nan'::DOUBLE n, NULL z,
                    [1.0, 'inf'::DOUBLE] l, {'k': '=x'} s, '=1+1' f, -1 m, true t, MAP {'a': 1} p,
                    TIMESTAMPTZ '2020-01-02 12:00:00+00' w"""
    result = query(door, sql)
    (row,) = json.loads(render(result, "json"), parse_constant=pytest.fail)
    assert (row["d"], row["e"], row["b"], row["n"], row["l"]) == ("2020-01-02", "1.50", "ff", None, [1.0, None])
    assert datetime.fromisoformat(row["w"]) == datetime(2020, 1, 2, 12, tzinfo=UTC)
    (cells,) = csv.DictReader(io.StringIO(render(result, "csv")))
    assert (cells["f"], cells["m"], cells["n"], cells["z"]) == ("'=1+1", "-1", "", "")
    assert render(result, "table").count("\n") == 4


def test_prompts_that_the_model_cannot_tell_apart(door: Connection) -> None:
    assert query(door, "FROM indistinguishable").rows == [("same", 2, ["0", "1"])]
    outcomes = query(door, "SELECT n FROM outcomes WHERE table_name = 'scores' AND status = 'ok'").rows
    assert outcomes == [(5,)]


READER = """
import duckdb, sys
with duckdb.connect(sys.argv[1], read_only=True) as c:
    print(c.sql("select count(*), max(value) from scores").fetchall(), c.sql("from findings").fetchall(),
          c.sql("select n_prompts from indistinguishable").fetchall())
"""


def test_the_database_stands_alone(files: dict[str, list[Path]], tmp_path: Path) -> None:
    root = tmp_path / "run"
    materialise(files, root / "audit.duckdb")
    for paths in files.values():
        paths[0].unlink()
    assert os.listdir(root) == ["audit.duckdb"]
    root.rename(tmp_path / "moved")
    call = [sys.executable, "-c", READER, str(tmp_path / "moved" / "audit.duckdb")]
    done = subprocess.run(call, capture_output=True, text=True, cwd="/", env=bare(), check=True)
    assert done.stdout.strip() == "[(5, 2.0)] [] [(2,)]"


def test_a_failed_database_leaves_the_old_one_and_nothing_else(files: dict[str, list[Path]], tmp_path: Path) -> None:
    out = tmp_path / "run" / "audit.duckdb"
    materialise(files, out)
    before = out.read_bytes()
    damaged = files["scores"][0]
    data = damaged.read_bytes()
    # The footer is whole: the damage shows when the new database is half written.
    damaged.write_bytes(data[:4] + b"\xff" * 300 + data[304:])
    with pytest.raises(Exception, match=r"\S"):
        materialise(files, out)
    assert out.read_bytes() == before
    assert len(os.listdir(out.parent)) == len(files) + 1


def test_a_database_lasts_under_its_name_and_is_its_owners_alone(
    files: dict[str, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By our own sync: DuckDB's is not seen here."""
    synced: set[tuple[int, int]] = set()
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.add(place(os.fstat(descriptor))))
    out = tmp_path / "audit.duckdb"
    materialise(files, out)
    assert {place(out.stat()), place(tmp_path.stat())} <= synced
    assert stat.S_IMODE(out.stat().st_mode) == 0o600


def place(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
