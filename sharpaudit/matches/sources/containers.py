"""Layouts that keep a training set in files of many rows or members, one of them or a folder full.

Whatever else lies in the folder becomes a unit of its own, so that it is counted.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sharpaudit.errors import UserError, printable
from sharpaudit.matches.sources.base import Item, Layout, Unit, state_of
from sharpaudit.matches.sources.walk import Entry, beside, told, walk

CAPTIONS = ("caption", "text")
"""Columns that hold captions, where none is named."""


@dataclass(frozen=True)
class ContainerLayout(Layout):
    """place: a folder, or one file. allow_unreadable: count what cannot be listed or is damaged, not refuse it."""

    place: Path
    allow_unreadable: bool = field(default=False, kw_only=True)

    @property
    def root(self) -> Path:
        """The folder that paths of units are relative to."""
        return self.place.parent if self.place.is_file() else self.place

    def listed(self) -> list[Entry]:
        """All that lies there. Raises UserError for a place that is neither a folder nor a file."""
        if self.place.is_file():
            return [Entry(self.place.name, "file")]
        if not self.place.is_dir():
            raise UserError(f"{printable(str(self.place))}: not a folder of training pictures, nor a file")
        return list(walk(self.place, self.allow_unreadable))

    def items(self, payload: dict[str, Any]) -> Iterator[Item]:
        source = self.root.resolve().name
        if "others" in payload:
            yield from beside(payload["others"], source)
        else:
            yield from self.held(payload, source)

    @abstractmethod
    def held(self, payload: dict[str, Any], source: str) -> Iterator[Item]:
        """What a unit of its files holds. source: name of the data set."""


def others(entries: Sequence[Entry], read: Collection[str]) -> Iterator[Unit]:
    """The unit of what lies beside the files that are read; none where nothing does."""
    unread = told(entry for entry in entries if entry.path not in read)
    if unread:
        yield Unit({"others": unread}, unread, 0)


def groups(root: Path, table: str, about: dict[str, Any]) -> Iterator[Unit]:
    """A unit for each group of rows of a Parquet file. about: of the payload, beside table, group and first row."""
    first = 0
    with readable(root / table):
        held = pq.read_metadata(root / table)
    for group in range(held.num_row_groups):
        n = held.row_group(group).num_rows
        payload = {"table": table, "group": group, "first": first} | about
        yield Unit(payload, [payload, state_of(root / table)], n)
        first += n


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """A table that cannot be read is a UserError that names it."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{printable(str(path))}: cannot be read: {printable(str(error))}") from error


def texts(column: pa.Array | pa.ChunkedArray) -> list[str | None]:
    """A column of texts, whose bytes may be no Unicode, or of anything else as text."""
    large = pa.types.is_large_string(column.type)
    if not (large or pa.types.is_string(column.type)):
        return [None if value is None else str(value) for value in column.to_pylist()]
    held = column.cast(pa.large_binary() if large else pa.binary()).to_pylist()
    return [None if value is None else value.decode("utf-8", "replace") for value in held]
