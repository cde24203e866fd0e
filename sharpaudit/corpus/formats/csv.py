"""Prompts in csv: UTF-8 with a header, quoted by doubling, read strictly.

A record that breaks the quoting costs its first line only; one with another number of fields than the header is
malformed. A line `sep=;` before the header, as spreadsheets write it, names the delimiter. Spark writes a quote
within quotes as \\" and not as "": where the first such lines are better csv by that rule, the file is read by it.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain

from sharpaudit.config import as_delimiter
from sharpaudit.corpus.formats.base import Format
from sharpaudit.corpus.opened import open_text
from sharpaudit.corpus.rows import PromptRow, Source, listed, make_row, require_columns, shown, without_blank_end
from sharpaudit.errors import Status, UserError, printable

MAX_LINE = 1 << 24
"""Characters in one row."""
MAX_FIELD = 1 << 22
"""Characters in one field."""
AHEAD = 1 << 18
"""Characters that decide how quotes are escaped."""
_SEP = re.compile(r'"?sep=([^"\r\n]|\\t)"?[\r\n]*', re.IGNORECASE)
_ESCAPED_QUOTE = re.compile(r'(\\+)"')


def read_tsv(source: Source) -> Iterator[PromptRow]:
    """As `read_csv`, separated by tabs, whatever the source says."""
    return read_csv(replace(source, delimiter="\t"), "called .csv, and ")


def read_csv(source: Source, called: str = "") -> Iterator[PromptRow]:
    """Every record of the file as a row. Raises UserError for a file without header or with an endless row.

    called: what must be done before a delimiter could help.
    """
    csv.field_size_limit(MAX_FIELD)
    with io.TextIOWrapper(open_text(source.path), "utf-8", errors="surrogateescape", newline="") as file:
        lines = iter(partial(file.readline, MAX_LINE + 1), "")
        first = next(lines, "")
        if not first:
            return
        told = _SEP.fullmatch(first)
        if told is not None:
            source = replace(source, delimiter=as_delimiter(told[1]))
        if source.delimiter in '"\r\n':
            raise UserError(
                f"{shown(source)}: {source.delimiter!r} cannot separate csv fields; use for instance ',' or ';'"
            )
        records = _records(_doubled(lines if told else chain([first], lines), source), source)
        header = next(records, [])
        if isinstance(header, str):
            raise UserError(f"{shown(source)}: the header is not valid csv: {header}")
        require_columns(source, header, _delimiter_hint(source, header, called))
        place = {name: header.index(name) for name in source.columns}
        for i, fields in enumerate(without_blank_end(records, [[]])):
            if not fields and len(header) == 1:
                fields = [""]  # A blank line of a file with one column: an empty prompt.
            if isinstance(fields, str):
                yield PromptRow(i, None, problem=Status.MALFORMED_ROW, detail=f"Not valid csv: {fields}.")
            elif len(fields) != len(header):
                detail = f"The row has {len(fields)} fields, the header {len(header)}."
                yield PromptRow(i, None, problem=Status.MALFORMED_ROW, detail=detail)
            else:
                cells = {name: fields[at].encode(errors="surrogateescape") for name, at in place.items()}
                yield make_row(source, i, cells[source.column], cells)


def _doubled(lines: Iterator[str], source: Source) -> Iterator[str]:
    """The lines with quotes escaped by doubling, whichever way the file does it.

    The ways agree up to the first \\". From there on they are tried on a piece, and the one that breaks fewer records
    is the file's; doubling, where neither does.
    """
    for line in lines:
        if '\\"' not in line:
            yield line
            continue
        piece, size = [line], len(line)
        while size < AHEAD and (line := next(lines, "")):
            piece.append(line)
            size += len(line)
        if _broken([_without_backslashes(line) for line in piece], source) < _broken(piece, source):
            yield from map(_without_backslashes, chain(piece, lines))
        else:
            yield from chain(piece, lines)


def _broken(piece: list[str], source: Source) -> int:
    """How many records break the rules."""
    try:
        return sum(isinstance(record, str) for record in _records(iter(piece), source))
    except UserError:  # A row or field without end, which reading names.
        return len(piece)


def _without_backslashes(line: str) -> str:
    """Spark escapes a quote and the backslashes before one; a backslash elsewhere is itself."""
    return _ESCAPED_QUOTE.sub(lambda m: "\\" * (len(m[1]) // 2) + '""'[: 1 + len(m[1]) % 2], line)


def _records(file: Iterator[str], source: Source) -> Iterator[list[str] | str]:
    """The fields of each record; for a broken one, what is wrong with it."""
    held: deque[str] = deque()
    taken: list[str] = []
    # PromptRow numbers as in `source_row`: the header, which is read first, is -1.
    count, size = -1, 0

    def lines() -> Iterator[str]:
        nonlocal size
        while line := held.popleft() if held else next(file, ""):
            size += len(line)
            if size > MAX_LINE:
                raise too_long("row", MAX_LINE)
            taken.append(line)
            yield line

    def too_long(what: str, limit: int) -> UserError:
        fix = "close its quotes or shorten it"
        return UserError(f"{shown(source)}: row {count}: a {what} of more than {limit} characters; {fix}")

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


def _delimiter_hint(source: Source, header: Sequence[str], called: str) -> str:
    if len(header) != 1:
        return ""
    splits = {d: next(csv.reader(header, delimiter=d), []) for d in ",;\t|" if d != source.delimiter}
    best = max(splits, key=lambda d: (source.column in splits[d], len(splits[d])))
    if len(splits[best]) < 2:
        return ""
    has = "has that column" if source.column in splits[best] else f"has the columns {listed(splits[best])}"
    return f"; {called}with delimiter = {json.dumps(best)} the file {has}"


CSV = Format(".csv", read_csv, packed=True)
TSV = Format(".tsv", read_tsv, packed=True)
