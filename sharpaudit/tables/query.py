"""SQL over a run's tables: the door to DuckDB for everything that a run has committed.

`connect` opens views over files that the caller has verified (lists from manifests, never globs), with the
rest of the machine locked away; `query` admits one reading statement; `materialise` writes `audit.duckdb`, real tables
and the same views in one file that opens anywhere and in older clients. Numbers that are not finite are null
in every view, alone or in a list, so that NaN can never top a list (DuckDB orders it above everything). views.py
says which views and macros stand beside the tables.

Which tables there are is the run's to say: one of another version has other tables than this program makes. A column
that this program's table has and the run's has not is null, so that every view stands; a view is there where the tables
that it reads are. A view of others that cannot be made over a run is left out of it: `check_views` says beforehand why.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import duckdb
import pyarrow as pa

from sharpaudit.errors import UserError, printable
from sharpaudit.tables.answers import Result
from sharpaudit.tables.files import IN_PROGRESS, Files, PlainName, is_plain, plain_folder
from sharpaudit.tables.schemas import OPTIONAL_TABLES, RUN_TABLES, Table
from sharpaudit.tables.views import (
    CURRENT,
    INTERNAL,
    RANKS,
    TAKEN,
    WIDE,
    View,
    identifier,
    quoted,
    ranks,
    view_name,
    views,
    wide,
)

Connection = duckdb.DuckDBPyConnection
Answer = TypeVar("Answer")
STORAGE_VERSION = "v1.2.0"
LEAN = "512MiB"
READING = "give exactly one reading statement (select, from, values, describe, summarize, show)"
_REFUSALS = ("Expected a single SELECT statement", "must be at the top level")
NONE: Mapping[str, str] = {}
_OF_THE_DISK = re.compile(
    "Could not (write|fsync|truncate|read)|No space left|File too large|Input/output error|failed to offload"
)
"""In DuckDB's words."""
_OPTIONS: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
}


def connect(
    files: Mapping[str, Sequence[Path]],
    root: Path,
    spill: Path | None = None,
    *,
    tables: Sequence[Table] = RUN_TABLES,
    others: Mapping[str, str] = NONE,
) -> Connection:
    """An in-memory connection with a view per table; it can read below `root` and do nothing else.

    files: Parquet files of each table by its name; a table without one is empty. spill: a folder for what does not fit
    into memory. tables: those of the run. others: selects of further views, by their names, each after those that it
    reads.
    """
    plain = PlainName(root)
    connection = _open(plainly(files, plain), tables, others)
    # Views read the files whenever they are asked: the name must stay as long as the connection.
    weakref.finalize(connection, plain.close)
    if spill is not None:
        connection.execute(f"SET temp_directory = {quoted(str(spill))}")
    connection.execute(f"SET allowed_directories = [{quoted(str(plain.path))}]")
    _locked(connection)
    return connection


def _locked(connection: Connection) -> None:
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def check_views(tables: Sequence[Table], others: Mapping[str, str], measured: Sequence[tuple[int, str]] = ()) -> None:
    """Raise UserError, naming the view and the mistake, unless each of others can be made over these tables, empty.

    tables: all of the run. others: as for `connect`. measured: the tiers and metrics that the scores are going to have,
    of which the wide views have their columns.
    """
    if not others:
        return
    with _open({}, tables, NONE, measured) as connection:
        there = set(map(str.lower, views_there(connection)))
        for name, sql in others.items():
            view = View(str(name), str(sql))
            what = f'view "{printable(view.name)}"'
            if view.name.lower() in there | TAKEN or view.name.lower().startswith(INTERNAL):
                raise UserError(f"{what}: a table, a view or a macro has this name already; give it another")
            try:
                lacking = sorted(_reads(view.sql) - there)
                if lacking:
                    names = ", ".join(map(printable, lacking))
                    raise UserError(f"reads {names}, which is neither a table nor a view before it")
                connection.execute(view.statement)
            except (duckdb.Error, UnicodeEncodeError, UserError) as error:
                raise UserError(f"{what}: {printable(' '.join(str(error).split()), 1000)}") from error
            there.add(view.name.lower())


def views_there(connection: Connection) -> list[str]:
    """The names of the tables and views that can be asked."""
    sql = "SELECT view_name FROM duckdb_views() WHERE NOT internal AND NOT starts_with(view_name, 'stored_')"
    return sorted(name for (name,) in connection.sql(sql).fetchall())


@contextmanager
def open_file(path: Path, *, lean: bool = False) -> Iterator[Connection]:
    """A database that `materialise` wrote, for reading and with the rest of the machine locked away, closed at the end
    of the block. lean: in LEAN memory. What does not fit goes to a temporary folder."""
    with TemporaryDirectory() as spill, ExitStack() as stack:
        where = path
        if not is_plain(path):
            # Of a database DuckDB asks the true name, whatever link leads there.
            where = Path(stack.enter_context(plain_folder())) / path.name
            shutil.copyfile(path, where)
        opened = stack.enter_context(closing(duckdb.connect(str(where), read_only=True, config=_OPTIONS)))
        opened.execute(f"SET temp_directory = {quoted(spill)}")
        if lean:
            opened.execute(f"SET memory_limit = '{LEAN}'")
        _locked(opened)
        yield opened


def query(connection: Connection, sql: str) -> Result:
    """The rows of one reading statement. Raises UserError, one line, for anything else and for mistakes in it."""
    return _read(connection, sql, lambda relation: Result(list(relation.columns), relation.fetchall()))


def table_of(connection: Connection, sql: str) -> pa.Table:
    """The same as an Arrow table."""
    return _read(connection, sql, lambda relation: relation.to_arrow_table())


def _read(connection: Connection, sql: str, fetch: Callable[[duckdb.DuckDBPyRelation], Answer]) -> Answer:
    try:
        # As the argument of query() a statement can be nothing but a single select. As it stands it could write
        # below the root, which must be readable: EXPLAIN ANALYZE COPY and WITH x AS (COPY ...) do.
        return fetch(connection.sql(f"FROM query({quoted(sql)})"))
    except (duckdb.Error, UnicodeEncodeError) as error:
        told = " ".join(str(error).split())
        if any(refusal in told for refusal in _REFUSALS):
            raise UserError(READING) from error
        raise UserError(f"the query failed: {printable(told, 2000)}") from error


def materialise(
    files: Mapping[str, Sequence[Path]],
    out: Path,
    *,
    tables: Sequence[Table] = RUN_TABLES,
    others: Mapping[str, str] = NONE,
) -> None:
    """Write `out`: tables and views in one DuckDB file that stands alone; whole or not at all. tables, others: as for
    `connect`."""
    folder, disk = out.with_name(f".{out.name}-{uuid.uuid4().hex}{IN_PROGRESS}"), Files()
    attempt = folder / out.name
    folder.mkdir(0o700)
    try:
        with disk_errors(out), ExitStack() as stack:
            plain = stack.enter_context(closing(PlainName(out.parent)))
            where = folder if is_plain(folder) else Path(stack.enter_context(plain_folder()))
            with _open(plainly(files, plain), tables, others) as connection:
                _write_database(connection, tables, others, where / out.name, where / "spill")
            if where != folder:
                shutil.copyfile(where / out.name, attempt)
        attempt.chmod(0o600)  # as every file of ours; DuckDB leaves it to the umask
        disk.sync(attempt)
        disk.rename(attempt, out)
        disk.sync_folder(out.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_database(
    connection: Connection, tables: Sequence[Table], others: Mapping[str, str], path: Path, spill: Path
) -> None:
    connection.execute(f"SET temp_directory = {quoted(str(spill))}")
    connection.execute(f"ATTACH {quoted(str(path))} AS target (STORAGE_VERSION '{STORAGE_VERSION}')")
    there = set(views_there(connection))
    stored = [name for name in [*map(view_name, tables), WIDE] if name in there]
    for name in stored:
        own = identifier(name)
        connection.execute(f"CREATE TABLE target.{own} AS SELECT * FROM memory.{own}")  # noqa: S608
    ranked = ranks(_measured(connection)) if RANKS in there else None
    connection.execute("USE target")
    if ranked is not None:
        connection.execute(f"CREATE TABLE {RANKS} AS {ranked}")
    _create_views(connection, tables, others)
    connection.execute("USE memory")
    # By itself, since why it failed is not said, by older versions not even that it did, as it is detached.
    connection.execute("CHECKPOINT target")
    connection.execute("DETACH target")


def plainly(files: Mapping[str, Sequence[Path]], plain: PlainName) -> dict[str, list[Path]]:
    """The files of each table by their plain names."""
    return {name: [plain.of(path) for path in paths] for name, paths in files.items()}


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """DuckDB and Arrow tell of a full or failing disk in errors of their own: here an OSError that names `path`."""
    try:
        yield
    except (duckdb.Error, OSError) as error:
        told = " ".join(str(error).split())
        if (isinstance(error, OSError) and error.errno is not None) or not _OF_THE_DISK.search(told):
            raise
        raise OSError(errno.EIO, told, str(path)) from error


def _open(
    files: Mapping[str, Sequence[Path]],
    tables: Sequence[Table],
    others: Mapping[str, str],
    measured: Sequence[tuple[int, str]] | None = None,
) -> Connection:
    """measured: tiers and metrics of the scores, where they are not those of the files."""
    connection = duckdb.connect(":memory:", config=_OPTIONS)
    # Dozens of statements read the same files, which never change: their footers are read once.
    connection.execute("SET parquet_metadata_cache = true")
    sources = {view_name(table): _source(connection, table, files.get(table.name, ())) for table in tables}
    for name, source in sources.items():
        stored = f"stored_{name}" if name in CURRENT else name
        connection.execute(f"CREATE VIEW {identifier(stored)} AS {source}")
    for name, sql in CURRENT.items():
        if name in sources:
            there = _reads(sql) - {f"stored_{name}"} <= sources.keys()
            chosen = sql if there else f"SELECT * FROM {identifier(f'stored_{name}')}"  # noqa: S608
            connection.execute(f"CREATE VIEW {identifier(name)} AS {chosen}")
    if {"scores", "corpus"} <= sources.keys():
        measured = _measured(connection) if measured is None else measured
        connection.execute(f"CREATE VIEW {WIDE} AS {wide(measured)}")
        connection.execute(f"CREATE VIEW {RANKS} AS {ranks(measured)}")
    _create_views(connection, tables, others)
    return connection


def _measured(connection: Connection) -> list[tuple[int, str]]:
    """Tiers and metrics of the scores."""
    found: list[tuple[int, str]] = connection.sql("SELECT DISTINCT tier, metric FROM scores ORDER BY ALL").fetchall()
    return found


def _create_views(connection: Connection, tables: Sequence[Table], others: Mapping[str, str]) -> None:
    """Every view of which what it reads is there; of others those that can be made, by a name that is free."""
    there = {view_name(table).lower() for table in tables}
    there |= {WIDE, RANKS} if {"scores", "corpus"} <= there else set()
    for view in views(tables):
        if _reads(view.sql) <= there:
            connection.execute(view.statement)
            there |= {view.name} if view.parameters is None else set()
    for name, sql in others.items():
        view = View(str(name), str(sql))
        if view.name.lower() in there | TAKEN:
            continue
        # A stranger's mistake, or a table of another version that lacks a column (ours are filled up by `_source`),
        # must not keep anybody from a good run. A failing disk shows without it: ours read the same files before.
        with suppress(duckdb.Error, UnicodeEncodeError, UserError):
            if _reads(view.sql) <= there:
                connection.execute(view.statement)
                there.add(view.name.lower())


@cache
def _reads(sql: str) -> frozenset[str]:
    """The tables and views that a select reads, in small letters, but for those that it makes by itself.

    Of its syntax alone: nothing need be there. Raises UserError for what is no select.
    """
    with closing(duckdb.connect(":memory:", config=_OPTIONS)) as connection:
        (told,) = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [sql]).fetchall()[0]
    tree = json.loads(told)
    if tree["error"] or len(tree["statements"]) != 1:
        told = tree.get("error_message", "one statement is expected")
        raise UserError(f"not the select of a view: {printable(told)}: {printable(sql)}")
    nodes = list(_nodes(tree))
    own = {entry["key"].lower() for node in nodes for entry in node.get("cte_map", {}).get("map", ())}
    return frozenset(node["table_name"].lower() for node in nodes if node.get("type") == "BASE_TABLE") - own


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Every node of a tree of JSON."""
    if isinstance(tree, dict):
        yield tree
    for entry in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _nodes(entry)


def _source(connection: Connection, table: Table, paths: Sequence[Path]) -> str:
    """SELECT over the files of a table, with null for what is not finite or stands in this program's table alone."""
    ours = next((own.schema for own in (*RUN_TABLES, *OPTIONAL_TABLES) if own.name == table.name), table.schema)
    lacking = [field for field in ours if field.name not in table.schema.names]
    empty = identifier(f"empty_{view_name(table)}")
    if lacking or not paths:
        connection.from_arrow(pa.schema([*table.schema, *lacking]).empty_table()).create(empty)
    if not paths:
        return f"SELECT * FROM {empty}"  # noqa: S608
    columns = [f"{_finite(field)} AS {identifier(field.name)}" for field in table.schema]
    listed = ", ".join(quoted(str(path)) for path in paths)
    stored = f"SELECT {', '.join(columns)} FROM read_parquet([{listed}])"  # noqa: S608
    return f"{stored} UNION ALL BY NAME SELECT * FROM {empty}" if lacking else stored  # noqa: S608


def _finite(field: pa.Field) -> str:
    name = identifier(field.name)
    if pa.types.is_floating(field.type):
        return f"CASE WHEN isfinite({name}) THEN {name} END"
    if pa.types.is_list(field.type) and pa.types.is_floating(field.type.value_type):
        return f"[CASE WHEN isfinite(x) THEN x END FOR x IN {name}]"
    return name
