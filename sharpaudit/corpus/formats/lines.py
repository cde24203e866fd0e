"""Prompts in jsonl (one object a line) and txt (one prompt a line).

In jsonl a null or absent prompt is missing, one that is not text malformed. A line of txt ends in LF, and one CR
before it belongs to the line end, not to the prompt.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sharpaudit.corpus.rows import Row, Source, make_row, require_columns, without_blank_end
from sharpaudit.errors import Status, printable

MAX_LINE = 1 << 24
"""Bytes in one line."""
_BOM = b"\xef\xbb\xbf"


def read_jsonl(source: Source) -> Iterator[Row]:
    """Every line of the file as a row. Raises UserError for a column that no line has."""
    _require_keys(source)
    for i, line in enumerate(without_blank_end(_lines(source.path), (b"", b"\r"))):
        entry = _object(line)
        if isinstance(entry, str):
            yield Row(i, None, problem=Status.MALFORMED_ROW, detail=entry)
            continue
        prompt = entry.get(source.column)
        if prompt is None:
            yield make_row(source, i, None, entry, Status.MISSING)
        elif not isinstance(prompt, str):
            detail = f"The prompt is of type {type(prompt).__name__}, not text."
            yield make_row(source, i, None, entry, Status.MALFORMED_ROW, detail)
        elif not _encodable(prompt):
            yield make_row(source, i, None, entry, Status.INVALID_UTF8)
        else:
            yield make_row(source, i, prompt.encode(), entry)


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
        require_columns(source, list(found))


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_txt(source: Source) -> Iterator[Row]:
    """Every line of the file as a row."""
    for i, line in enumerate(without_blank_end(_lines(source.path), (b"", b"\r"))):
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
