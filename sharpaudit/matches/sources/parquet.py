"""The pictures of Parquet tables: as the Hugging Face hub keeps image data sets, and as img2dataset writes them.

A column of pictures holds the bytes of their files, or structures of `bytes` and `path`. Which one it is, is told by
the schema: the only column of this kind, or that which the hub's notes in it call an image. Captions are in a column
`caption` or `text`. Each row is a picture, and one without bytes is rejected with its reason; but where img2dataset's
`status` says that it could not be downloaded, it counts as "not downloaded", as of an archive.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
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
    NotLookedAt,
    ReferencePicture,
    Unit,
)
from sharpaudit.matches.sources.containers import CAPTIONS, ContainerLayout, groups, others, readable, texts
from sharpaudit.matches.sources.walk import Entry

ROWS_AT_ONCE, BUFFER_BYTES = 16, 2**20


@dataclass(frozen=True)
class TableLayout(ContainerLayout):
    """The rows of Parquet files, a group of rows at a time.

    `units` raises UserError, before any picture is read, where there is none, where one cannot be read or lacks a
    column, and where it is not clear which column holds the pictures.
    """

    image_column: str | None = None
    caption_column: str | None = None

    def units(self) -> Iterator[Unit]:
        entries, root = self.listed(), self.root
        tables = [
            e.path for e in entries if e.kind == "file" and e.path.endswith(".parquet") and not _ours(root / e.path)
        ]
        if not tables:
            raise UserError(f"{printable(str(self.place))}: holds no Parquet file of training pictures")
        columns = {path: _columns(root / path, self.image_column, self.caption_column) for path in tables}
        return self._units(entries, columns)

    def _units(self, entries: Sequence[Entry], columns: dict[str, tuple[str, str | None]]) -> Iterator[Unit]:
        for shown, (image, caption) in columns.items():
            yield from groups(self.root, shown, {"image": image, "caption": caption})
        yield from others(entries, columns)

    def held(self, payload: dict[str, Any], source: str) -> Iterator[Item]:
        path = self.root / payload["table"]
        # Read as it is asked for: of a large group all pictures would be in memory at once.
        with readable(path), pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER_BYTES) as table:
            yield from _rows(table, payload, source)


def _rows(table: pq.ParquetFile, payload: dict[str, Any], source: str) -> Iterator[Item]:
    image, caption, number = payload["image"], payload["caption"], payload["first"]
    wanted = [image, *([caption] if caption else []), *({STATUS} & set(table.schema_arrow.names))]
    for batch in table.iter_batches(ROWS_AT_ONCE, row_groups=[payload["group"]], columns=wanted):
        n = batch.num_rows
        paths, pictures = _files(batch[image])
        captions = texts(batch[caption]) if caption else [None] * n
        states = texts(batch[STATUS]) if STATUS in wanted else [SUCCESS] * n
        for data, path, text, state in zip(pictures, paths, captions, states, strict=True):
            at = f"{payload['table']}#{number}"
            if state != SUCCESS and not data:
                yield NotLookedAt(at, "not downloaded")
            else:
                yield _picture(data, path, text, source, at)
            number += 1


def _files(column: pa.Array) -> tuple[list[str | None], list[bytes | None]]:
    """Names and bytes of a column of pictures."""
    none: list[str | None] = [None] * len(column)
    if not pa.types.is_struct(column.type):
        return none, column.to_pylist()
    held = dict(zip([field.name for field in column.type], column.flatten(), strict=True))
    return texts(held["path"]) if "path" in held else none, held["bytes"].to_pylist()


def _ours(path: Path) -> bool:
    """Whether a table is one of this program's, such as that of an index, whose thumbnails are no training pictures."""
    with readable(path):
        return b"sharpaudit.table" in (pq.read_schema(path).metadata or {})


def _picture(data: bytes | None, path: str | None, caption: str | None, source: str, place: str) -> ReferencePicture:
    shown = f"{place} {path}" if path else place
    if not data:
        problem = f"its table holds no bytes of it, but the name of a file: {path}" if path else "an empty cell"
        return ReferencePicture(None, source, caption, shown, None, problem)
    if len(data) > MAX_BYTES:
        return ReferencePicture(None, source, caption, shown, None, too_large())
    return ReferencePicture(None, source, caption, shown, data)


def _columns(path: Path, image: str | None, caption: str | None) -> tuple[str, str | None]:
    """The columns of pictures and of captions, None where there are none."""
    shown = printable(str(path))
    with readable(path):
        schema = pq.read_schema(path)
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
    named = [name for name in CAPTIONS if name in schema.names and _is_text(schema.field(name).type)]
    return found[0], caption or next(iter(named), None)


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
