"""Errors and exclusions: rows without a result, by what became of them."""

from __future__ import annotations

from sharpaudit.errors import Status
from sharpaudit.report.reading import Entry, rows_of
from sharpaudit.tables.query import Connection


def exclusions(connection: Connection) -> list[Entry]:
    sql = "SELECT stage, table_name, status, n FROM outcomes WHERE status NOT IN ('ok', 'cleared') ORDER BY ALL"
    return [row | {"sentence": Status(row["status"]).describe()} for row in rows_of(connection, sql)]
