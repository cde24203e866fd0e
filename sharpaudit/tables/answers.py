"""Answers of SQL in the forms that people and programs read: a table of text, CSV, JSON, Parquet."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from sharpaudit.errors import printable

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""First characters that make a spreadsheet take a cell for a formula, or skip on to one."""


@dataclass(frozen=True)
class Result:
    """Rows of a query under their column names."""

    columns: list[str]
    rows: list[tuple[Any, ...]]


def render(result: Result, form: Literal["table", "csv", "json"]) -> str:
    """The result as text ending in a newline."""
    if form == "json":
        rows = [dict(zip(result.columns, map(plain, row), strict=True)) for row in result.rows]
        return json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    if form == "csv":
        return csv_text(result.columns, result.rows)
    cells = [[printable(name) for name in result.columns]]
    cells += [["" if v is None else printable(_shown(v), 80) for v in row] for row in result.rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(result.columns))]
    cells.insert(1, ["-" * width for width in widths])
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join(lines) + f"\n({len(result.rows):,} row{'' if len(result.rows) == 1 else 's'})\n"


def csv_text(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """CSV in which no cell is a formula: text that a spreadsheet would execute gets a leading apostrophe."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow([_harmless(name) for name in columns])
    writer.writerows([[_harmless(plain(value)) for value in row] for row in rows])
    return stream.getvalue()


def parquet(table: pa.Table) -> bytes:
    """The table as a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue())


def plain(value: Any) -> Any:
    """A value that JSON and CSV can hold; NaN and infinity become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, bytes):
        return value.hex()
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(plain(value))


def _harmless(value: Any) -> Any:
    text = (
        value
        if isinstance(value, str)
        else json.dumps(value, ensure_ascii=False)
        if isinstance(value, (list, dict))
        else None
    )
    if text is None:
        return value
    return f"'{text}" if text[:1] in FORMULA else text
