"""Prompt files to rows: every data row of a file becomes exactly one `PromptRow`, in bounded memory.

A row holds the exact bytes of its prompt, or a `problem`; a bad row neither vanishes nor moves its
neighbours. What is wrong with the file as a whole (a missing column, a wrong type) is a `UserError`.

The formats are told by the end of the name (files.py); csv, jsonl and txt may be compressed (opened.py). A byte order
mark is skipped in them, and blank lines at the very end are no rows. Bytes that are not UTF-8 come back as they are; in
the columns beside the prompt they are shown as \\xNN. Prompts in which letters and NULs take turns, which are UTF-16
that was read in as bytes, end the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from sharpaudit.corpus.files import format_of
from sharpaudit.corpus.rows import PromptRow, Source, require_file, shown
from sharpaudit.encoding import between_nuls
from sharpaudit.errors import UserError


def read_rows(source: Source, start: int = 0, stop: int | None = None) -> Iterator[PromptRow]:
    """The rows start, ..., stop - 1 of the file, or as many of them as it has."""
    require_file(source.path)
    return _window(source, format_of(source.path).read(source), start, stop)


def _window(source: Source, rows: Iterator[PromptRow], start: int, stop: int | None) -> Iterator[PromptRow]:
    row = None
    for row in islice(rows, start, stop):
        if row.prompt is not None and b"\0" in row.prompt and between_nuls(row.prompt):
            raise UserError(
                f"{shown(source)}: row {row.source_row}: letters and NULs take turns, as where UTF-16 was appended to "
                "or read in as other text: make that part anew as UTF-8"
            )
        yield row
    if row is None and start == 0 and stop != 0 and not source.is_shard:
        raise UserError(f"{shown(source)}: the file has no row of data; give one with at least one prompt")
