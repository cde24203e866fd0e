"""SQL of the report's facts: a value, or rows as dictionaries; and a count of a count with its interval."""

from __future__ import annotations

from typing import Any

from sharpaudit.statistics.intervals import clopper_pearson
from sharpaudit.tables.query import Connection

Entry = dict[str, Any]


def one(connection: Connection, sql: str) -> Any:
    """The first column of the first row."""
    return connection.sql(sql).fetchall()[0][0]


def rows_of(connection: Connection, sql: str) -> list[Entry]:
    """All rows, by column."""
    relation = connection.sql(sql)
    return [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]


def rate(k: int, n: int) -> Entry:
    """k of n with its interval; undefined where n is zero, or where the tables contradict themselves."""
    if n == 0 or k > n:
        return {"n": k, "of": n, "rate": None, "low": None, "high": None}
    interval = clopper_pearson(k, n)
    return {"n": k, "of": n, "rate": k / n, "low": interval.low, "high": interval.high}
