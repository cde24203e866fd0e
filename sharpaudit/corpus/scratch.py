"""The rows of one ingest on disk, and SQL over them: ten million prompts pass through little memory.

A second door to DuckDB beside tables/query.py: that one reads what a run has committed, this one holds what is not
decided yet. The database lies in a folder of its own, which is deleted at the end; nothing else reads it.

Ids of 32 hex digits are UUIDs in here, half as large as text; the macro `hex_of` writes one as it stands in a table.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from sharpaudit.tables.files import is_plain, plain_folder
from sharpaudit.tables.query import disk_errors

MEMORY, THREADS = "512MiB", 4
ROWS_PER_BATCH = 65_536
Values = Mapping[str, Any] | None
"""Of the parameters of a statement, by name."""


class Scratch:
    """A database of its own in `folder`, which is made and must not exist."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._elsewhere = None if is_plain(folder) else plain_folder()
        place = Path(self._elsewhere.name) if self._elsewhere else folder
        self._connection = duckdb.connect(str(place / "rows.duckdb"))
        # Where order matters a query says so; without the promise to keep it DuckDB needs less memory.
        for setting, value in {
            "memory_limit": f"'{MEMORY}'",
            # Each thread holds memory of its own: with one for every core of a large machine that would not suffice.
            "threads": str(min(THREADS, os.cpu_count() or 1)),
            "temp_directory": f"'{str(place / 'spill').replace(chr(39), chr(39) * 2)}'",
            "preserve_insertion_order": "false",
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
        }.items():
            self._connection.execute(f"SET {setting} = {value}")
        self._connection.execute("CREATE MACRO hex_of(id) AS replace(id::VARCHAR, '-', '')")

    def create(self, table: str, schema: pa.Schema, ids: Sequence[str] = ()) -> None:
        """An empty table of these columns, those of `ids` as UUIDs."""
        self._connection.register("arriving", schema.empty_table())
        as_ids = ", ".join(f"{name}::UUID AS {name}" for name in ids)
        self._connection.execute(f"CREATE TABLE {table} AS SELECT * REPLACE ({as_ids}) FROM arriving")  # noqa: S608
        self._connection.unregister("arriving")

    def run(self, sql: str, values: Values = None) -> None:
        """One statement without an answer."""
        self._connection.execute(sql, values)

    def insert(self, table: str, rows: pa.Table) -> None:
        """Add rows whose columns stand in the table's order; ids may come as hex."""
        self._connection.register("arriving", rows)
        self._connection.execute(f"INSERT INTO {table} SELECT * FROM arriving")  # noqa: S608 - our own
        self._connection.unregister("arriving")

    def rows(self, sql: str, values: Values = None) -> list[tuple[Any, ...]]:
        """The whole answer, for one that is short."""
        found: list[tuple[Any, ...]] = self._connection.execute(sql, values).fetchall()
        return found

    def stream(self, sql: str, values: Values = None) -> Iterator[pa.Table]:
        """The answer in batches; other statements may run in between."""
        # A cursor of its own: a connection's next statement would end the answer of the one before.
        reader = self._connection.cursor().sql(sql, params=values).to_arrow_reader(ROWS_PER_BATCH)
        for batch in reader:
            yield pa.Table.from_batches([batch])

    def close(self) -> None:
        """Let go of the files."""
        self._connection.close()
        if self._elsewhere is not None:
            self._elsewhere.cleanup()


@contextmanager
def scratch(folder: Path) -> Iterator[Scratch]:
    """An empty scratch in `folder`; what a killed ingest left there goes first, and everything at the end."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with disk_errors(folder), closing(Scratch(folder)) as opened:
            yield opened
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def cut(parts: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """The same rows in tables of `size` rows; the last may be shorter."""
    held: list[pa.Table] = []
    n = 0
    for part in parts:
        held.append(part)
        n += part.num_rows
        if n < size:
            continue
        whole = pa.concat_tables(held)
        full = n - n % size
        for start in range(0, full, size):
            yield whole.slice(start, size)
        held, n = [whole.slice(full)], n - full
    if n:
        yield pa.concat_tables(held)
