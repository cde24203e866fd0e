"""Tables as a run records them and views of others beside them: what comes back, and what is refused by name."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import sharpaudit
from pipelines.operations.status import describe
from sharpaudit.errors import IntegrityError, UserError
from sharpaudit.report.sections.flow import _stray_keys
from sharpaudit.tables.declared import described, rebuilt, refusal
from sharpaudit.tables.query import check_views, connect, materialise, open_file, query
from sharpaudit.tables.reading import current_files, open_connection
from sharpaudit.tables.runs import RunFolder
from sharpaudit.tables.schemas import RUN_TABLES, SAMPLES, SCORES, Table
from tests.support.stranger import ADDED, MISTAKEN, table


def rows(root: Path, sql: str) -> list[tuple[Any, ...]]:
    with open_connection(RunFolder.open(root)) as connection:
        return query(connection, sql).rows


@pytest.mark.parametrize("own", RUN_TABLES, ids=lambda own: own.name)
def test_a_table_comes_back_from_its_record_to_the_last_byte(own: Table) -> None:
    again = rebuilt(json.loads(json.dumps(described(own))))
    assert again == own
    assert again.schema.equals(own.schema, check_metadata=True)
    assert again.schema.serialize() == own.schema.serialize()


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.list_(pa.int8())), pa.map_(pa.string(), pa.list_(pa.float64())), pa.date32(), pa.binary()]
)
def test_types_of_others_come_back_too(kind: pa.DataType) -> None:
    own = table("others", "other", pa.field("value", kind))
    assert rebuilt(described(own)) == own


def test_a_type_that_no_record_can_hold_is_refused_as_it_is_recorded() -> None:
    with pytest.raises(ValueError, match=r"struct|cannot hold"):
        described(table("others", "other", pa.field("value", pa.struct([pa.field("x", pa.int8())]))))


def test_a_version_without_end_is_none() -> None:
    with pytest.raises(ValueError, match="not the entry of a table"):
        rebuilt(described(SCORES) | {"version": float("inf")})


def test_types_stand_in_each_other_eight_deep_at_most() -> None:
    kind = pa.int8()
    for _ in range(8):
        kind = pa.list_(kind)
    own = table("others", "other", pa.field("value", kind))
    assert rebuilt(described(own)) == own
    with pytest.raises(ValueError, match="more than 8 deep"):
        described(table("others", "other", pa.field("value", pa.list_(kind))))


def test_a_table_that_is_cut_down_to_what_is_current_is_its_own_stages() -> None:
    with pytest.raises(ValueError, match="is not that of the stage 'other'"):
        rebuilt(described(SAMPLES) | {"stage": "other"})


@pytest.mark.parametrize(
    ("name", "others", "says"),
    [
        ("unlearning", ["scores"], None),
        ("fit/more", ["fit/unconditional"], None),
        ("order", [], None),
        ("scores", ["scores"], "as the table scores is"),
        ("fit_unconditional", ["fit/unconditional"], "as the table fit/unconditional is"),
        ("scores/more", ["scores"], "in one folder with the table scores"),
        ("fit", ["fit/unconditional"], "in one folder with the table fit/unconditional"),
        ("prompt/ranks", [], "the name of a view or macro"),
        ("matches_of", [], "the name of a view or macro"),
        ("stored/x", [], "internal"),
        ("seals", [], "holds no table"),
        ("Scores", [], "no name of a table"),
        ("a/b/c", [], "no name of a table"),
    ],
)
def test_why_a_table_cannot_have_a_name_is_said(name: str, others: list[str], says: str | None) -> None:
    told = refusal(name, others)
    assert told is None if says is None else told is not None and says in told


def test_a_table_may_be_called_by_a_word_of_sql(tmp_path: Path) -> None:
    order = table("order", "group", pa.field("select", pa.float64()))
    run = RunFolder.create(tmp_path / "run")
    run.write_record({"stages": {"group": {"fingerprint": "ab" * 32}}, "tables": [described(order)]})
    made = pa.Table.from_pylist([{"prompt_id": "a", "select": 1.5, "status": "non_finite"}], order.schema)
    run.table(order).commit("all", made, input_digest="")
    assert rows(run.root, 'select "select" from "order"') == [(1.5,)]
    assert rows(run.root, "select stage, table_name, key from errors") == [("group", "order", "a")]
    materialise(current_files(run), tmp_path / "a.duckdb", tables=[order])
    with open_file(tmp_path / "a.duckdb") as database:
        assert query(database, 'select "select" from "order"').rows == [(1.5,)]
    with closing(connect({}, run.root, tables=[*RUN_TABLES, order])) as connection:
        assert _stray_keys(connection, [order]) == []


@pytest.mark.parametrize("name", sorted(set(MISTAKEN) - {"circular"}))
def test_it_is_named_before_a_run_is_made(name: str) -> None:
    with pytest.raises(UserError, match=f'^view "{name}": .') as caught:
        check_views(RUN_TABLES, {name: MISTAKEN[name]})
    assert "\n" not in str(caught.value)


def test_a_view_is_checked_against_the_tables_and_metrics_that_there_will_be() -> None:
    good = {"first": "select residual_gap_tier_2 as x from prompt_metrics join unlearning using (prompt_id)"}
    good["second"] = "select max(x) from first"
    check_views([*RUN_TABLES, ADDED], good, [(2, "residual_gap")])
    for tables, others, measured, says in (
        (RUN_TABLES, good, [(2, "residual_gap")], "reads unlearning, which is neither"),
        ([*RUN_TABLES, ADDED], good, [], "residual_gap_tier_2"),
        (RUN_TABLES, {"a": "select 1 as x", "A": "select 2 as x"}, [], "has this name already"),
    ):
        with pytest.raises(UserError, match=says):
            check_views(tables, others, measured)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param('"version": Infinity', id="infinite"),
        pytest.param('"version": NaN', id="not a number"),
        pytest.param('"x": ' + "[" * 100_000 + "]" * 100_000, id="too deep"),
    ],
)
def test_a_record_that_json_cannot_hold_is_damage(tmp_path: Path, damage: str) -> None:
    older = RunFolder.create(tmp_path / "run").root
    RunFolder(older).write_record({"stages": {}, "tables": []})
    text = (older / "run.json").read_text()
    (older / "run.json").write_text(text.replace("{", "{" + damage + ",", 1))
    with pytest.raises(IntegrityError, match=r"run\.json: not a whole record"):
        sharpaudit.open_run(older)


def test_a_table_of_a_stage_that_is_not_installed_is_read_like_any_other(tmp_path: Path) -> None:
    """It is all that this run has: every view over other tables is absent, and asking for one is one line."""
    edges = table("edges/first", "edge", pa.field("order", pa.float64()), pa.field("found", pa.list_(pa.float32())))
    run = RunFolder.create(tmp_path / "run")
    run.write_record({"stages": {"edge": {"fingerprint": "ab" * 32}}, "tables": [described(edges)]})
    made = [{"prompt_id": name, "order": x, "found": [x], "status": "ok"} for name, x in (("a", 1.5), ("b", 2.5))]
    made.append({"prompt_id": "c", "status": "non_finite", "reason": "NaN"})
    assert rows(run.root, "from edges_first") == []
    run.table(edges).commit("all", pa.Table.from_pylist(made, edges.schema), input_digest="")
    assert rows(run.root, 'select prompt_id, "order", found from edges_first order by all') == [
        ("a", 1.5, [1.5]),
        ("b", 2.5, [2.5]),
        ("c", None, None),
    ]
    assert rows(run.root, "from errors") == [("edge", "edges_first", "c", "non_finite", "NaN")]
    with sharpaudit.open_run(run.root) as opened, pytest.raises(UserError, match=r"there are errors, outcomes$"):
        opened.view("findings")
    assert list(describe(run)["tables"]) == ["edges/first"]
    with pytest.raises(IntegrityError, match="knows no table scores"):
        run.table(SCORES)
