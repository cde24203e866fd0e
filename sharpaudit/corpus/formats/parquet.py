"""Prompts in Parquet: columns of text or bytes, read a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sharpaudit.corpus.rows import Row, Source, make_row, require_columns, shown
from sharpaudit.errors import Status, UserError, printable

BATCH_ROWS = 256


def read_parquet(source: Source) -> Iterator[Row]:
    """Every row of the file. Raises UserError for a file that cannot be read and for columns of another type."""
    i = 0
    try:
        with pq.ParquetFile(
            source.path, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True
        ) as file:
            require_columns(source, file.schema_arrow.names)
            for name in source.columns:
                _require_type(source, file.schema_arrow.field(name))
            for batch in file.iter_batches(BATCH_ROWS, columns=source.columns):
                cells = {name: _cells(batch.column(name)) for name in source.columns}
                for k in range(batch.num_rows):
                    entry = {name: values[k] for name, values in cells.items()}
                    prompt = entry[source.column]
                    yield make_row(source, i, prompt, entry, Status.MISSING if prompt is None else None)
                    i += 1
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{shown(source)}: not readable as Parquet from row {i} on: {printable(str(error))}") from error


def _require_type(source: Source, column: pa.Field) -> None:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    textual = _is_text(kind) or any(
        test(kind) for test in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    )
    if not textual and (column.name == source.column or not _is_simple(kind)):
        allowed = "string or binary" if column.name == source.column else "string, binary, a number or a date"
        raise UserError(f'{shown(source)}: column "{printable(column.name)}": expected {allowed}, found {kind}')


def _cells(array: pa.Array) -> list[Any]:
    """The values, text as bytes: Parquet does not promise that its text is UTF-8, and one bad row may not fail all."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if _is_simple(array.type):
        array = array.cast(pa.string())
    if _is_text(array.type):
        array = array.cast(pa.large_binary() if pa.types.is_large_string(array.type) else pa.binary())
    return list(array.to_pylist())


def _is_simple(kind: pa.DataType) -> bool:
    return bool(pa.types.is_primitive(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
