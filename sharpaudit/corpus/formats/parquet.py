"""Prompts in Parquet: columns of text or bytes, read a batch at a time by a process of its own.

Beside the prompt stand text, bytes, numbers, dates, times and UUIDs (also as 16 bytes), each as its text: whole
floating-point numbers as integers, decimals with all their digits, other bytes of a fixed number in hex.

A prompt file comes from anywhere, and a crafted one can crash its reader or make it allocate without end. So a child
with limits of memory and processor time decodes it (this module run by `python -m`) and passes plain columns of bytes
on as an Arrow stream. Whatever becomes of the child, the caller gets rows or one line that names the file.
"""

from __future__ import annotations

import json
import math
import resource
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from sharpaudit.corpus.formats.base import Format
from sharpaudit.corpus.rows import EXACT, PromptRow, Source, make_row, number_text, require_columns, require_id, shown
from sharpaudit.errors import Status, UserError, printable

BATCH_ROWS = 256
MEMORY = 4 << 30
"""Bytes of address space that decoding may take."""
CPU_SECONDS = 3600
ENDS_WITHIN_S = 5.0
UUID_BYTES = 16
DONE = "{} rows"
"""What a child that has sent everything says on its error output."""
REFUSED = 3
"""Exit code of a child that says on its error output why the file cannot be read."""


def read_parquet(source: Source) -> Iterator[PromptRow]:
    """Every row of the file. Raises UserError for a file that cannot be read and for columns of another type."""
    asked = {"source": asdict(source) | {"path": str(source.path)}, "batch_rows": BATCH_ROWS, "memory": MEMORY}
    # -P: the folder where somebody keeps prompt files is no place to import from.
    command = [sys.executable, "-P", "-m", "sharpaudit.corpus.formats.parquet", json.dumps(asked)]
    i = 0
    with tempfile.TemporaryFile() as told:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=told)  # noqa: S603 - our own module
        try:
            for cells in _received(child):
                for entry in cells:
                    prompt = entry[source.column]
                    yield make_row(source, i, prompt, entry, Status.MISSING if prompt is None else None)
                    i += 1
            _judge(source, child.wait(), told, i)
        finally:
            # Whoever needs no more rows lets the generator go.
            child.kill()
            child.wait()
            if child.stdout is not None:
                child.stdout.close()


def _received(child: subprocess.Popen[bytes]) -> Iterator[list[dict[str, bytes | None]]]:
    """The rows of each batch. A stream that breaks off ends here, and the child with it: its end says why."""
    try:
        with pa.ipc.open_stream(child.stdout) as reader:
            for batch in reader:
                batch.validate(full=True)
                yield batch.to_pylist()
    except (pa.ArrowException, OSError):
        try:
            # Most often it has ended already, and knows the reason better.
            child.wait(ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            child.kill()


def _judge(source: Source, code: int, told: IO[bytes], n_rows: int) -> None:
    """Raise what the child's end says about the file. It is whole only if the child says that it sent as many rows."""
    told.seek(0)
    reason = told.read().decode(errors="backslashreplace")
    if code == 0 and reason == DONE.format(n_rows):
        return
    if code == REFUSED:
        raise UserError(reason)
    ended = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    raise UserError(
        f"{shown(source)}: not readable as Parquet from row {n_rows} on: its reader ended with {ended}; the file is "
        f"damaged, or needs more than {MEMORY >> 30} GiB of memory or {CPU_SECONDS // 60} minutes"
    )


def main(request: str) -> int:
    """The child: write the stream; 0, or REFUSED after the reason."""
    asked = json.loads(request)
    named = asked["source"]
    source = Source(**named | {"path": Path(named["path"]), "labels": tuple(named["labels"])})
    _limit(asked["memory"])
    try:
        n_rows = _decode(source, asked["batch_rows"])
    except UserError as error:
        sys.stderr.write(str(error))
        return REFUSED
    sys.stderr.write(DONE.format(n_rows))
    return 0


def _limit(memory: int) -> None:
    """So much address space beyond what is mapped already, so much processor time, and no core file."""
    mapped = psutil.Process().memory_info().vms
    limits = {resource.RLIMIT_AS: mapped + memory, resource.RLIMIT_CPU: CPU_SECONDS, resource.RLIMIT_CORE: 0}
    for which, most in limits.items():
        hard = resource.getrlimit(which)[1]
        soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(which, (soft, soft))


def _decode(source: Source, batch_rows: int) -> int:
    """Write every row of the source's columns to the output, and return how many. Raises UserError with that number."""
    i = 0
    try:
        with pq.ParquetFile(
            source.path, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True
        ) as file:
            require_columns(source, file.schema_arrow.names)
            for name in source.columns:
                _require_type(source, file.schema_arrow.field(name))
            schema = pa.schema([(name, pa.large_binary()) for name in source.columns])
            with pa.ipc.new_stream(sys.stdout.buffer, schema) as out:
                for batch in file.iter_batches(batch_rows, columns=source.columns):
                    if source.id_column is not None:
                        _require_ids(source, i, batch.column(source.id_column))
                    columns = [_as_bytes(batch.column(name)) for name in source.columns]
                    out.write_batch(pa.record_batch(columns, schema))
                    i += batch.num_rows
    except (pa.ArrowException, OSError, MemoryError) as error:
        why = printable(str(error)) or "it needs too much memory"
        raise UserError(f"{shown(source)}: not readable as Parquet from row {i} on: {why}") from error
    return i


def _require_type(source: Source, column: pa.Field) -> None:
    kind = _plain(column.type)
    if _is_text(kind):
        return
    if column.name == source.column:
        allowed = "string or binary"
    elif column.name == source.id_column and pa.types.is_boolean(kind):
        allowed = "string, binary, a number or a date for an id"
    elif _is_simple(kind):
        return
    else:
        allowed = "string, binary, a number or a date"
    raise UserError(f'{shown(source)}: column "{printable(column.name)}": expected {allowed}, found {column.type}')


def _require_ids(source: Source, first: int, array: pa.Array) -> None:
    """Refuse numbers that rounding may have made of several."""
    kind = _plain(array.type)
    if pa.types.is_floating(kind):
        exact = {16: 2.0**11, 32: 2.0**24, 64: EXACT}[kind.bit_width]
        for i, value in enumerate(array.to_pylist(), first):
            require_id(source, i, value, exact)


def _as_bytes(array: pa.Array) -> pa.Array:
    """The values as bytes: Parquet does not promise that its text is UTF-8, and one bad row may not fail all."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kind = array.type
    if pa.types.is_floating(kind):
        shown = zip(array.to_pylist(), array.cast(pa.string()).to_pylist(), strict=True)
        array = pa.array([value if value is None else _of_float(value, text) for value, text in shown], pa.string())
    elif pa.types.is_fixed_size_binary(kind):
        write = (lambda value: str(uuid.UUID(bytes=value))) if kind.byte_width == UUID_BYTES else bytes.hex
        array = pa.array([value if value is None else write(value) for value in array.to_pylist()], pa.string())
    elif not _is_text(kind):
        array = array.cast(pa.string())
    return array.cast(pa.large_binary())


def _of_float(value: float, text: str) -> str | None:
    """text: as Arrow writes it, which knows how many digits a float has."""
    return text if math.isfinite(value) and not value.is_integer() else number_text(value)


def _plain(kind: Any) -> Any:
    """The type of the values themselves."""
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_simple(kind: Any) -> bool:
    return bool(
        pa.types.is_primitive(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_null(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _is_text(kind: Any) -> bool:
    tests = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")
    return any(getattr(pa.types, f"is_{name}")(kind) for name in tests)


PARQUET = Format(".parquet", read_parquet)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
