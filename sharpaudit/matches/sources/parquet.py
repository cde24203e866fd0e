"""The pictures of Parquet tables: as the Hugging Face hub keeps image data sets, and as img2dataset writes them.

A column of pictures holds the bytes of their files, or structures of `bytes` and `path`. Which one it is, is told by
the schema: the only column of this kind, or that which the hub's notes in it call an image. Captions are in a column
`caption` or `text`. Each row is a picture, and one without bytes is rejected with its reason; but where img2dataset's
`status` says that it could not be downloaded, it counts as "not downloaded", as of an archive.
"""

from __future__ import annotations

import json
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
    state_of,
)
from sharpaudit.matches.sources.walk import Entry, beside, listed, told

CAPTIONS = ("caption", "text")
ROWS_AT_ONCE, BUFFER_BYTES = 16, 2**20


@dataclass(frozen=True)
class TableLayout(Layout):
    """The rows of the Parquet files under a folder, or of one, a group of rows at a time.

    `units` raises UserError, before any picture is read, where there is none, where one cannot be read or lacks a
    column, and where it is not clear which column holds the pictures.
    """

    place: Path
    image_column: str | None = None
    caption_column: str | None = None
    allow_unreadable: bool = False

    def units(self) -> Iterator[Unit]:
        root, entries = listed(self.place, self.allow_unreadable)
        tables = [e for e in entries if e.kind == "file" and e.path.endswith(".parquet") and not _ours(root / e.path)]
        if not tables:
            raise UserError(f"{printable(str(self.place))}: holds no Parquet file of training pictures")
        columns = {e.path: _columns(root / e.path, self.image_column, self.caption_column) for e in tables}
        return self._units(root, entries, columns)

    def _units(
        self, root: Path, entries: Sequence[Entry], columns: dict[str, tuple[str, str | None]]
    ) -> Iterator[Unit]:
        for shown, (image, caption) in columns.items():
            first = 0
            with _readable(root / shown):
                groups = pq.read_metadata(root / shown)
            for group in range(groups.num_row_groups):
                n = groups.row_group(group).num_rows
                payload = {"table": shown, "group": group, "first": first, "image": image, "caption": caption}
                yield Unit(payload, [payload, state_of(root / shown)], n)
                first += n
        others = told(entry for entry in entries if entry.path not in columns)
        if others:
            yield Unit({"others": others}, others, 0)

    def items(self, payload: dict[str, Any]) -> Iterator[Item]:
        root = self.place.parent if self.place.is_file() else self.place
        source = root.resolve().name
        yield from beside(payload.get("others", ()), source)
        if "table" in payload:
            path = root / payload["table"]
            # Read as it is asked for: of a large group all pictures would be in memory at once.
            with _readable(path), pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER_BYTES) as table:
                yield from _rows(table, payload, source)


def _rows(table: pq.ParquetFile, payload: dict[str, Any], source: str) -> Iterator[Item]:
    image, caption, number = payload["image"], payload["caption"], payload["first"]
    wanted = [image, *([caption] if caption else []), *({STATUS} & set(table.schema_arrow.names))]
    for batch in table.iter_batches(ROWS_AT_ONCE, row_groups=[payload["group"]], columns=wanted):
        n = batch.num_rows
        paths, pictures = _files(batch[image])
        texts = _texts(batch[caption]) if caption else [None] * n
        states = _texts(batch[STATUS]) if STATUS in wanted else [SUCCESS] * n
        for data, path, text, state in zip(pictures, paths, texts, states, strict=True):
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
    return _texts(held["path"]) if "path" in held else none, held["bytes"].to_pylist()


def _texts(column: pa.Array) -> list[str | None]:
    """A column of texts, whose bytes may be no Unicode."""
    large = pa.types.is_large_string(column.type)
    if not (large or pa.types.is_string(column.type)):
        return [None if value is None else str(value) for value in column.to_pylist()]
    held = column.cast(pa.large_binary() if large else pa.binary()).to_pylist()
    return [None if value is None else value.decode("utf-8", "replace") for value in held]


def _ours(path: Path) -> bool:
    """Whether a table is one of this program's, such as that of an index, whose thumbnails are no training pictures."""
    with _readable(path):
        return b"sharpaudit.table" in (pq.read_schema(path).metadata or {})


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{printable(str(path))}: cannot be read: {printable(str(error))}") from error


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
    with _readable(path):
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
