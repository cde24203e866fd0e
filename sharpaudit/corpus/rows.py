"""What every reader of prompt files works with: the file and its columns, a row, and what is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any, Literal, TypeVar

from sharpaudit.errors import Status, UserError, nearest, printable

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
    style_column: str | None = None
    labels: tuple[str, ...] = ()

    @property
    def columns(self) -> list[str]:
        """The columns that are read, each once, the prompt's first."""
        named = [self.column, self.id_column, self.family_column, self.style_column, *self.labels]
        return list(dict.fromkeys(name for name in named if name is not None))


@dataclass(frozen=True, slots=True)
class Row:
    """source_row: 0 is the first row of data. prompt: exact bytes, None where there is a problem."""

    source_row: int
    prompt: bytes | None
    external_id: str | None = None
    family: str | None = None
    style: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    problem: Status | None = None
    detail: str | None = None


def count_and_hash(path: Path) -> tuple[str, int]:
    """SHA-256 in hex and size in bytes of a file, read as a stream."""
    require_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), file.tell()


def make_row(
    source: Source,
    index: int,
    prompt: bytes | None,
    cells: dict[str, Any],
    problem: Status | None = None,
    detail: str | None = None,
) -> Row:
    """A row with what the columns beside the prompt say."""
    labels = {name: text for name in source.labels if (text := _text(cells.get(name))) is not None}
    named = (source.id_column, source.family_column, source.style_column)
    external_id, family, style = (_text(cells.get(name)) or None if name is not None else None for name in named)
    return Row(index, prompt, external_id, family, style, labels, problem, detail)


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


def without_blank_end(items: Iterable[T], blanks: Sequence[T]) -> Iterator[T]:
    """The items but for the blank ones after the last other. They are counted, not kept: a file may be all blank."""
    n = 0
    for item in items:
        if item in blanks:
            n += 1
            continue
        yield from repeat(blanks[0], n)
        n = 0
        yield item


def require_file(path: Path) -> None:
    """Refuse a path that is no readable file, with a UserError."""
    try:
        if path.is_dir() or (path.exists() and not path.is_file()):
            raise UserError(f"{printable(str(path))}: not a file; give the path of a file of prompts")
        path.open("rb").close()
    except (OSError, ValueError) as error:
        why = printable(getattr(error, "strerror", None) or str(error))
        raise UserError(f"{printable(str(path))}: cannot read the file of prompts: {why}") from error


def require_columns(source: Source, found: Sequence[str], hint: str = "") -> None:
    """Every column of `source` must stand among `found`, and once."""
    for name in source.columns:
        if found.count(name) > 1:
            raise UserError(
                f'{shown(source)}: column "{printable(name)}" stands {found.count(name)} times; rename all but one'
            )
        if name not in found:
            same = [printable(c) for c in found if c.casefold() == name.casefold()]
            near = f' (did you mean "{same[0]}"?)' if same else nearest(name, [printable(c) for c in found])
            columns = f"; the columns are {listed(found)}" if found else "; the first line is blank"
            raise UserError(f'{shown(source)}: no column "{printable(name)}"{near}{columns}{hint}')


def listed(names: Sequence[str], limit: int = 20) -> str:
    """Names for an error line, the first of them."""
    first = ", ".join(f'"{printable(name)}"' for name in names[:limit])
    return first + (f" and {len(names) - limit} more" if len(names) > limit else "")


def shown(source: Source) -> str:
    """The path of a file for an error line."""
    return printable(str(source.path))
