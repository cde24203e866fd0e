"""SQL of the report's facts: a value, or rows as dictionaries."""

from __future__ import annotations

from typing import Any

from sharpaudit.tables.query import Connection

Row = dict[str, Any]


def one(connection: Connection, sql: str) -> Any:
    """The first column of the first row."""
    return connection.sql(sql).fetchall()[0][0]


def rows_of(connection: Connection, sql: str) -> list[Row]:
    """All rows, by column."""
    relation = connection.sql(sql)
    return [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]
