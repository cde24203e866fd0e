"""Prompt files to rows: every data row of a file becomes exactly one `Row`, in bounded memory.

A row holds the exact bytes of its prompt, or a `problem`; a bad row neither vanishes nor moves its
neighbours. What is wrong with the file as a whole (a missing column, a wrong type) is a `UserError`.

- .csv: UTF-8 with a header, quoted by doubling, read strictly. A record that breaks the quoting costs its first line
  only. A record with another number of fields than the header is malformed.
- .jsonl: one object a line. A null or absent prompt is missing, one that is not text malformed.
- .parquet: columns of text or bytes.
- .txt: one prompt a line; a line ends in LF, and one CR before it belongs to the line end, not to the prompt.

In csv, jsonl and txt a byte order mark is skipped, and blank lines at the very end are no rows. Bytes that
are not UTF-8 come back as they are; in the columns beside the prompt they are shown as \\xNN.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, repeat
from pathlib import Path
from typing import Any, Literal, TextIO, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from sharpaudit.errors import Status, UserError, nearest, printable

MAX_LINE = 1 << 24
"""Bytes in one line of a jsonl or txt file, characters in one row of a csv file."""
MAX_FIELD = 1 << 22
"""Characters in one field of a csv file."""
BATCH_ROWS = 256
_BOM = b"\xef\xbb\xbf"
T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """One prompt file, what it is for, and where its columns are."""

    name: str
    """Names the file in `origins`, such as "audit:prompts.csv"."""
    use: Literal["audit", "positive_control", "fit", "calibration", "harmless"]
    """harmless: split by family into fit and calibration."""
    path: Path
    column: str = "prompt"
    delimiter: str = ","
    id_column: str | None = None
    family_column: str | None = None
    labels: tuple[str, ...] = ()

    @property
    def columns(self) -> list[str]:
        """The columns that are read, each once, the prompt's first."""
        named = [self.column, self.id_column, self.family_column, *self.labels]
        return list(dict.fromkeys(name for name in named if name is not None))


@dataclass(frozen=True, slots=True)
class Row:
    """source_row: 0 is the first row of data. prompt: exact bytes, None where there is a problem."""

    source_row: int
    prompt: bytes | None
    external_id: str | None = None
    family: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    problem: Status | None = None
    detail: str | None = None


def count_and_hash(path: Path) -> tuple[str, int]:
    """SHA-256 in hex and size in bytes of a file, read as a stream."""
    _require_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), file.tell()


def read_rows(source: Source, start: int = 0, stop: int | None = None) -> Iterator[Row]:
    """The rows start, ..., stop - 1 of the file, or as many of them as it has."""
    _require_file(source.path)
    reader = _READERS.get(source.path.suffix.lower())
    if reader is None:
        raise UserError(f"{_shown(source)}: a prompt file ends in {', '.join(_READERS)}; rename or convert this one")
    if source.path.stat().st_size == 0:
        raise UserError(f"{_shown(source)}: the file is empty; give one with at least one prompt")
    return _window(source, reader(source), start, stop)


def _window(source: Source, rows: Iterator[Row], start: int, stop: int | None) -> Iterator[Row]:
    row = None
    for row in islice(rows, start, stop):
        yield row
    if row is None and start == 0 and stop != 0:
        raise UserError(f"{_shown(source)}: the file has no row of data; give one with at least one prompt")


def _csv(source: Source) -> Iterator[Row]:
    if source.delimiter in '"\r\n':
        raise UserError(
            f"{_shown(source)}: {source.delimiter!r} cannot separate csv fields; use for instance ',' or ';'"
        )
    csv.field_size_limit(MAX_FIELD)
    with source.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        records = _records(file, source)
        header = next(records, [])
        if isinstance(header, str):
            raise UserError(f"{_shown(source)}: the header is not valid csv: {header}")
        _require_columns(source, header, _delimiter_hint(source, header))
        place = {name: header.index(name) for name in source.columns}
        for i, fields in enumerate(_without_blank_end(records, [[]])):
            if not fields and len(header) == 1:
                fields = [""]  # A blank line of a file with one column: an empty prompt.
            if isinstance(fields, str):
                yield Row(i, None, problem=Status.MALFORMED_ROW, detail=f"Not valid csv: {fields}.")
            elif len(fields) != len(header):
                detail = f"The row has {len(fields)} fields, the header {len(header)}."
                yield Row(i, None, problem=Status.MALFORMED_ROW, detail=detail)
            else:
                cells = {name: fields[at].encode(errors="surrogateescape") for name, at in place.items()}
                yield _row(source, i, cells[source.column], cells)


def _records(file: TextIO, source: Source) -> Iterator[list[str] | str]:
    """The fields of each record; for a broken one, what is wrong with it."""
    held: deque[str] = deque()
    taken: list[str] = []
    # Row numbers as in `source_row`: the header, which is read first, is -1.
    count, size = -1, 0

    def lines() -> Iterator[str]:
        nonlocal size
        while line := held.popleft() if held else file.readline(MAX_LINE + 1):
            size += len(line)
            if size > MAX_LINE:
                raise too_long("row", MAX_LINE)
            taken.append(line)
            yield line

    def too_long(what: str, limit: int) -> UserError:
        fix = "close its quotes or shorten it"
        return UserError(f"{_shown(source)}: row {count}: a {what} of more than {limit} characters; {fix}")

    reader = csv.reader(lines(), delimiter=source.delimiter, strict=True)
    while True:
        taken.clear()
        size = 0
        try:
            fields = next(reader, None)
        except csv.Error as error:
            if "field limit" in str(error):
                raise too_long("field", MAX_FIELD) from error
            # An open quote swallows rows that are not to blame: all lines but the first are read again.
            held.extendleft(reversed(taken[1:]))
            reader = csv.reader(lines(), delimiter=source.delimiter, strict=True)
            yield printable(str(error))
        else:
            if fields is None:
                return
            yield fields
        count += 1


def _delimiter_hint(source: Source, header: Sequence[str]) -> str:
    if header and header[0].startswith(("\udcff\udcfe", "\udcfe\udcff")):
        return "; the file is UTF-16: save it as UTF-8"
    if len(header) != 1:
        return ""
    splits = {d: next(csv.reader(header, delimiter=d), []) for d in ",;\t|" if d != source.delimiter}
    best = max(splits, key=lambda d: (source.column in splits[d], len(splits[d])))
    if len(splits[best]) < 2:
        return ""
    has = "has that column" if source.column in splits[best] else f"has the columns {_listed(splits[best])}"
    return f"; with delimiter = {json.dumps(best)} the file {has}"


def _jsonl(source: Source) -> Iterator[Row]:
    _require_keys(source)
    for i, line in enumerate(_without_blank_end(_lines(source.path), (b"", b"\r"))):
        entry = _object(line)
        if isinstance(entry, str):
            yield Row(i, None, problem=Status.MALFORMED_ROW, detail=entry)
            continue
        prompt = entry.get(source.column)
        if prompt is None:
            yield _row(source, i, None, entry, Status.MISSING)
        elif not isinstance(prompt, str):
            detail = f"The prompt is of type {type(prompt).__name__}, not text."
            yield _row(source, i, None, entry, Status.MALFORMED_ROW, detail)
        elif not _encodable(prompt):
            yield _row(source, i, None, entry, Status.INVALID_UTF8)
        else:
            yield _row(source, i, prompt.encode(), entry)


def _object(line: bytes | None) -> dict[str, Any] | str:
    """The object of a line, or what is wrong with it."""
    if line is None:
        return f"The line has more than {MAX_LINE} bytes."
    try:
        # Broken bytes become lone surrogates, so that they spoil their own value only.
        entry = json.loads(line.decode(errors="surrogateescape"))
    except (ValueError, RecursionError) as error:
        return f"Not valid JSON: {printable(str(error))}."
    return entry if isinstance(entry, dict) else f"The line is of type {type(entry).__name__}, not an object."


def _require_keys(source: Source) -> None:
    """Refuse a column that no line has; as a rule the first line settles it."""
    absent = set(source.columns)
    found: dict[str, None] = {}
    for line in _lines(source.path):
        entry = _object(line)
        if isinstance(entry, dict):
            found |= dict.fromkeys(sorted(absent & entry.keys()) if found else entry)
            absent -= entry.keys()
        if not absent:
            return
    if found:
        _require_columns(source, list(found))


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _txt(source: Source) -> Iterator[Row]:
    for i, line in enumerate(_without_blank_end(_lines(source.path), (b"", b"\r"))):
        if line is None:
            yield Row(i, None, problem=Status.TOO_LONG)
        else:
            yield Row(i, line.removesuffix(b"\r"))


def _lines(path: Path) -> Iterator[bytes | None]:
    """Lines without their LF; None for one beyond MAX_LINE, of which nothing is kept."""
    with path.open("rb") as file:
        if file.read(len(_BOM)) != _BOM:
            file.seek(0)
        while line := file.readline(MAX_LINE + 1):
            if line.endswith(b"\n") or len(line) <= MAX_LINE:
                yield line.removesuffix(b"\n")
                continue
            while line and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE)
            yield None


def _without_blank_end(items: Iterable[T], blanks: Sequence[T]) -> Iterator[T]:
    """The items but for the blank ones after the last other. They are counted, not kept: a file may be all blank."""
    n = 0
    for item in items:
        if item in blanks:
            n += 1
            continue
        yield from repeat(blanks[0], n)
        n = 0
        yield item


def _parquet(source: Source) -> Iterator[Row]:
    i = 0
    try:
        with pq.ParquetFile(
            source.path, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True
        ) as file:
            _require_columns(source, file.schema_arrow.names)
            for name in source.columns:
                _require_type(source, file.schema_arrow.field(name))
            for batch in file.iter_batches(BATCH_ROWS, columns=source.columns):
                cells = {name: _cells(batch.column(name)) for name in source.columns}
                for k in range(batch.num_rows):
                    entry = {name: values[k] for name, values in cells.items()}
                    prompt = entry[source.column]
                    yield _row(source, i, prompt, entry, Status.MISSING if prompt is None else None)
                    i += 1
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{_shown(source)}: not readable as Parquet from row {i} on: {printable(str(error))}"
        ) from error


def _require_type(source: Source, column: pa.Field) -> None:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    textual = _is_text(kind) or any(
        test(kind) for test in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    )
    if not textual and (column.name == source.column or not _is_simple(kind)):
        allowed = "string or binary" if column.name == source.column else "string, binary, a number or a date"
        raise UserError(f'{_shown(source)}: column "{printable(column.name)}": expected {allowed}, found {kind}')


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


def _row(
    source: Source,
    index: int,
    prompt: bytes | None,
    cells: dict[str, Any],
    problem: Status | None = None,
    detail: str | None = None,
) -> Row:
    labels = {name: text for name in source.labels if (text := _text(cells.get(name))) is not None}
    external_id = _text(cells.get(source.id_column)) if source.id_column is not None else None
    family = _text(cells.get(source.family_column)) if source.family_column is not None else None
    return Row(index, prompt, external_id or None, family or None, labels, problem, detail)


def _text(value: Any) -> str | None:
    """A value of a column beside the prompt as text that can be stored."""
    if value is None:
        return None
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except RecursionError:  # Writing needs a deeper stack than reading did.
        text = f"a deeply nested {type(value).__name__}"
    return text.encode(errors="backslashreplace").decode()


def _require_file(path: Path) -> None:
    try:
        if path.is_dir() or (path.exists() and not path.is_file()):
            raise UserError(f"{printable(str(path))}: not a file; give the path of a file of prompts")
        path.open("rb").close()
    except (OSError, ValueError) as error:
        why = printable(getattr(error, "strerror", None) or str(error))
        raise UserError(f"{printable(str(path))}: cannot read the file of prompts: {why}") from error


def _require_columns(source: Source, found: Sequence[str], hint: str = "") -> None:
    """Every column of `source` must stand among `found`, and once."""
    for name in source.columns:
        if found.count(name) > 1:
            raise UserError(
                f'{_shown(source)}: column "{printable(name)}" stands {found.count(name)} times; rename all but one'
            )
        if name not in found:
            same = [printable(c) for c in found if c.casefold() == name.casefold()]
            near = f' (did you mean "{same[0]}"?)' if same else nearest(name, [printable(c) for c in found])
            columns = f"; the columns are {_listed(found)}" if found else "; the first line is blank"
            raise UserError(f'{_shown(source)}: no column "{printable(name)}"{near}{columns}{hint}')


def _listed(names: Sequence[str], limit: int = 20) -> str:
    shown = ", ".join(f'"{printable(name)}"' for name in names[:limit])
    return shown + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _shown(source: Source) -> str:
    return printable(str(source.path))


_READERS = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet, ".txt": _txt}
