"""Prompts in jsonl (one object a line) and txt (one prompt a line).

In jsonl a null or absent prompt is missing, one that is not text malformed. A line ends in LF, and one CR before it
belongs to the line end, not to the prompt; in a file without LF lines end in CR.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sharpaudit.corpus.formats.base import Format
from sharpaudit.corpus.opened import open_text
from sharpaudit.corpus.rows import PromptRow, Source, make_row, require_columns, shown, without_blank_end
from sharpaudit.errors import Status, UserError, printable

MAX_LINE = 1 << 24
"""Bytes in one line."""
_DOCUMENT = re.compile(rb"\s*(\[\s*(\{.*,\s*)?|\{\s*)", re.DOTALL)
"""A line with which JSON begins that goes on in the next one."""
_FIELD_ENDS = re.compile(rb"[,;\t|]")
MAX_HEADER = 1 << 16
"""Bytes of a line that may be the header of a table."""


def read_jsonl(source: Source) -> Iterator[PromptRow]:
    """Every line of the file as a row. Raises UserError for a column that no line has."""
    _require_keys(source)
    for i, line in enumerate(without_blank_end(_lines(source.path), (b"", b"\r"))):
        entry = _object(line)
        if isinstance(entry, str):
            yield PromptRow(i, None, problem=Status.MALFORMED_ROW, detail=entry)
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
    """Refuse a column that no line has, and a file of no objects; as a rule the first line settles it."""
    absent = set(source.columns)
    found: dict[str, None] = {}
    first = why = None
    for line in _lines(source.path):
        entry = _object(line)
        if first is None and line and line.strip():
            first, why = line, entry
            if _DOCUMENT.fullmatch(line):
                break
        if isinstance(entry, dict):
            found |= dict.fromkeys(sorted(absent & entry.keys()) if found else entry)
            absent -= entry.keys()
        if not absent:
            return
    if found:
        require_columns(source, list(found))
    elif first is not None:
        raise _no_lines_of_json(source, first, str(why))


def _no_lines_of_json(source: Source, first: bytes, why: str) -> UserError:
    if _DOCUMENT.fullmatch(first) or first.lstrip().startswith(b"["):
        return UserError(
            f"{shown(source)}: the file is one JSON document, and an object a line is read: convert it, for instance "
            "by `jq -c '.[]' OLD > NEW` where it is a list"
        )
    return UserError(
        f"{shown(source)}: no line is a JSON object, the first for instance: {why} One object a line is read here; "
        "name a csv .csv, and lines of text .txt"
    )


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_txt(source: Source) -> Iterator[PromptRow]:
    """Every line of the file as a row. Raises UserError where the first is the header of a table or an object."""
    _require_no_table(source)
    for i, line in enumerate(without_blank_end(_lines(source.path), (b"", b"\r"))):
        if line is None:
            yield PromptRow(i, None, problem=Status.TOO_LONG)
        else:
            yield PromptRow(i, line.removesuffix(b"\r"))


def _require_no_table(source: Source) -> None:
    """A table that is called .txt would be prompts that nobody wrote."""
    first = (next(_lines(source.path), None) or b"")[:MAX_HEADER]
    fields = [field.strip(b'"\r') for field in _FIELD_ENDS.split(first)]
    # A list of words has spaces after its commas, and may well name the column.
    if source.column.encode(errors="replace") in fields and not any(field.startswith(b" ") for field in fields):
        what = "names columns: name a csv .csv"
    elif isinstance(entry := _object(first), dict) and source.column in entry:
        what = "is a JSON object: name such a file .jsonl"
    else:
        return
    raise UserError(f"{shown(source)}: every line of a .txt is a prompt, but the first one {what}, or take it out")


def _lines(path: Path) -> Iterator[bytes | None]:
    """Lines without their LF; None for one beyond MAX_LINE, of which nothing is kept."""
    with open_text(path, lines=True) as file:
        while line := file.readline(MAX_LINE + 1):
            if line.endswith(b"\n") or len(line) <= MAX_LINE:
                yield line.removesuffix(b"\n")
                continue
            while line and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE)
            yield None


JSONL = Format(".jsonl", read_jsonl, packed=True)
NDJSON = Format(".ndjson", read_jsonl, packed=True, like=".jsonl")
JSON = Format(".json", read_jsonl, packed=True, like=".jsonl")
"""Lines too, as Spark writes them."""
TXT = Format(".txt", read_txt, packed=True)
