"""What every reader of prompt files works with: the file and its columns, a row, and what is refused."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeVar

from sharpaudit.errors import Status, UserError, nearest, printable

T = TypeVar("T")
EXACT = 2.0**53
"""Below it every whole number is a double of its own."""


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
    is_shard: bool = False
    """One of the files of a folder or a pattern, which may hold no row."""

    @property
    def columns(self) -> list[str]:
        """The columns that are read, each once, the prompt's first."""
        named = [self.column, self.id_column, self.family_column, self.style_column, *self.labels]
        return list(dict.fromkeys(name for name in named if name is not None))


class PromptRow(NamedTuple):
    """source_row: 0 is the first row of data. prompt: exact bytes, None where there is a problem."""

    source_row: int
    prompt: bytes | None
    external_id: str | None = None
    family: str | None = None
    style: str | None = None
    labels: Mapping[str, str] = MappingProxyType({})
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
) -> PromptRow:
    """A row with what the columns beside the prompt say. Raises UserError for an id that is none."""
    labels = {name: text for name in source.labels if (text := _text(cells.get(name))) is not None}
    if source.id_column is not None and type(value := cells.get(source.id_column)) not in _ALWAYS_IDS:
        require_id(source, index, value)
    named = (source.id_column, source.family_column, source.style_column)
    external_id, family, style = (_text(cells.get(name)) or None if name is not None else None for name in named)
    return PromptRow(index, prompt, external_id, family, style, labels, problem, detail)


_ALWAYS_IDS = {str, bytes, int, type(None)}


def require_id(source: Source, index: int, value: Any, exact: float = EXACT) -> None:
    """Refuse a value that does not name one row. exact: from here on such floats no longer tell numbers apart."""
    if isinstance(value, bool | list | dict):
        what = f"a value of type {type(value).__name__}"
    elif isinstance(value, float) and not math.isnan(value) and abs(value) >= exact:
        what = f"{value!r}, a floating-point number that stands for several whole ones"
    else:
        return
    raise UserError(
        f'{shown(source)}: row {index}: column "{printable(str(source.id_column))}" holds {what}, which is no id: '
        "store ids as text or as integers, or name another id_column"
    )


def number_text(value: float) -> str | None:
    """A floating-point number as text: a whole one as an integer, as it was before a table took it for a double; NaN,
    which such tables write for nothing, as None."""
    if math.isnan(value):
        return None
    return str(int(value)) if value.is_integer() and abs(value) < EXACT else repr(value)


def _text(value: Any) -> str | None:
    """A value of a column beside the prompt as text that can be stored."""
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if value is None or isinstance(value, float):
        return None if value is None else number_text(value)
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
