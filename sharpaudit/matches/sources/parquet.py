"""The pictures of Parquet tables: as the Hugging Face hub keeps image data sets, and as img2dataset writes them.

A column of pictures holds the bytes of their files, or structures of `bytes` and `path`. Which one it is, is told by
the schema: the only column of this kind, or that which the hub's notes in it call an image. Captions are in a column
`caption` or `text`. Each row is a picture, and one without bytes is rejected with its reason; but where img2dataset's
`status` says that it could not be downloaded, it counts as "not downloaded", as of an archive.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sharpaudit.errors import UserError, printable
from sharpaudit.images import MAX_BYTES, too_large
from sharpaudit.matches.sources.base import (
    STATUS,
    SUCCESS,
    Item,
    Layout,
    NotLookedAt,
    ReferencePicture,
    Unit,
    kind_of,
    state_of,
)

CAPTIONS = ("caption", "text")
ROWS_AT_ONCE = 16


@dataclass(frozen=True)
class TableLayout(Layout):
    """The rows of the Parquet files under a folder, or of one, a group of rows at a time.

    `units` raises UserError, before any picture is read, where there is none, where one cannot be read or lacks a
    column, and where it is not clear which column holds the pictures.
    """

    place: Path
    image_column: str | None = None
    caption_column: str | None = None

    def units(self) -> Iterator[Unit]:
        files = [self.place] if self.place.is_file() else sorted(p for p in self.place.rglob("*") if p.is_file())
        tables = [path for path in files if path.suffix == ".parquet"]
        if not tables:
            raise UserError(f"{printable(str(self.place))}: holds no Parquet file")
        columns = {path: _columns(path, self.image_column, self.caption_column) for path in tables}
        return self._units(files, columns)

    def _units(self, files: Sequence[Path], columns: dict[Path, tuple[str, str | None]]) -> Iterator[Unit]:
        for path, (image, caption) in columns.items():
            shown, first = path.relative_to(self._root).as_posix(), 0
            with _readable(path):
                groups = pq.read_metadata(path)
            for group in range(groups.num_row_groups):
                n = groups.row_group(group).num_rows
                told = {"table": shown, "group": group, "first": first, "image": image, "caption": caption}
                yield Unit(told, [told, state_of(path)], n)
                first += n
        others = [path.relative_to(self._root).as_posix() for path in files if path not in columns]
        if others:
            yield Unit({"others": others}, others, 0)

    def items(self, payload: dict[str, Any]) -> Iterator[Item]:
        for other in payload.get("others", ()):
            yield NotLookedAt(other, kind_of(os.path.splitext(other)[1].lower()))
        if "table" in payload:
            path = self._root / payload["table"]
            with _readable(path), pq.ParquetFile(path) as table:
                yield from self._rows(table, payload)

    def _rows(self, table: pq.ParquetFile, payload: dict[str, Any]) -> Iterator[Item]:
        image, caption, source = payload["image"], payload["caption"], self._root.resolve().name
        wanted = [image, *([caption] if caption else []), *({STATUS} & set(table.schema_arrow.names))]
        number = payload["first"]
        for batch in table.iter_batches(ROWS_AT_ONCE, row_groups=[payload["group"]], columns=wanted):
            for row in batch.to_pylist():
                at, text = f"{payload['table']}#{number}", row.get(caption) if caption else None
                if row.get(STATUS, SUCCESS) != SUCCESS and not row[image]:
                    yield NotLookedAt(at, "not downloaded")
                else:
                    yield _picture(row[image], text, source, at)
                number += 1

    @property
    def _root(self) -> Path:
        return self.place.parent if self.place.is_file() else self.place


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{printable(str(path))}: cannot be read: {printable(str(error))}") from error


def _picture(held: Any, text: Any, source: str, place: str) -> ReferencePicture:
    path, data = (held.get("path"), held.get("bytes")) if isinstance(held, dict) else (None, held)
    shown = f"{place} {path}" if path else place
    caption = text if isinstance(text, str) else None
    if not data:
        problem = f"its table holds no bytes of it, but the name of a file: {path}" if path else "an empty cell"
        return ReferencePicture(None, source, caption, shown, None, problem)
    if len(data) > MAX_BYTES:
        return ReferencePicture(None, source, caption, shown, None, too_large())
    return ReferencePicture(None, source, caption, shown, bytes(data))


def _columns(path: Path, image: str | None, caption: str | None) -> tuple[str, str | None]:
    """The columns of pictures and of captions, None where there are none."""
    shown = printable(str(path))
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{shown}: not a Parquet file: {printable(str(error))}") from error
    for asked, option in ((image, "--image-column"), (caption, "--caption-column")):
        if asked is not None and asked not in schema.names:
            told = printable(", ".join(schema.names))
            raise UserError(f"{option} {printable(asked)}: {shown} has no such column; it has {told}")
    able = [field.name for field in schema if _holds_files(field.type)]
    named = [name for name in _images_by_notes(schema) if name in able]
    found = [image] if image else named if len(named) == 1 else able
    if len(found) != 1 or found[0] not in able:
        told = f"columns {printable(', '.join(able))} could" if able else "none of its columns could"
        raise UserError(f"{shown}: {told} hold pictures; name the one that does with --image-column")
    texts = [name for name in CAPTIONS if name in schema.names and _is_text(schema.field(name).type)]
    return found[0], caption or next(iter(texts), None)


def _holds_files(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(inner.name == "bytes" and _holds_files(inner.type) for inner in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _images_by_notes(schema: pa.Schema) -> list[str]:
    """Columns that the hub's notes in the schema call an image."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return [name for name, told in features.items() if told["_type"] == "Image"]
    except (ValueError, LookupError, TypeError, AttributeError):
        return []
