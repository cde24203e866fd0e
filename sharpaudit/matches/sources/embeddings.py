"""Vectors that somebody else made of a training set, taken as they are: no picture is read, and none is there.

The place tells what it holds: `img_emb/img_emb_*.npy` with `metadata/metadata_*.parquet` beside it, as clip-retrieval
writes them, the rows of both in the same order; tables with a column of vectors; or .npy files alone, as autofaiss
reads them. Captions come from a column `caption` or `text`, the place of a picture from `image_path`, `url` or `key`.
Which embedder made them is for the user to say: nothing in the files tells it, and a wrong name gives similarities that
mean nothing.

A vector that is not of length 1 is scaled to it; one that is no direction, as it holds NaN or nothing but zeros, is a
rejected row. A row is known by its file and number.

Shapes: N rows, D dimension.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sharpaudit.errors import UserError, printable
from sharpaudit.matches.sources.base import GivenVector, Item, Unit, state_of
from sharpaudit.matches.sources.containers import CAPTIONS, ContainerLayout, groups, others, readable, texts
from sharpaudit.matches.sources.walk import Entry

CLIP_RETRIEVAL, METADATA = "img_emb/img_emb_", "metadata/metadata_"
PLACES = ("image_path", "url", "key")
ROWS_AT_ONCE = 2**14
"""Rows of a unit of .npy files: so many vectors of 1,024 numbers are 64 MiB."""
_BATCH = 1024
_NONE = "neither img_emb/img_emb_*.npy, nor a table with a column of vectors, nor .npy files"


@dataclass(frozen=True)
class EmbeddingLayout(ContainerLayout):
    """Vectors. vector_column: of tables, where it is not clear which one it is.

    `units` raises UserError where there is none, where a file cannot be read, and where metadata are of other rows.
    """

    gives_vectors = True

    vector_column: str | None = None
    caption_column: str | None = None

    def units(self) -> Iterator[Unit]:
        entries = self.listed()
        files = [entry.path for entry in entries if entry.kind == "file"]
        arrays = [path for path in files if path.endswith(".npy")]
        clip = [path for path in arrays if path.startswith(CLIP_RETRIEVAL)]
        if clip:
            return self._of_arrays(entries, {path: _metadata(path, files) for path in clip})
        columns = {path: self._column(self.root / path) for path in files if path.endswith(".parquet")}
        held = {path: column for path, column in columns.items() if column is not None}
        if held:
            return self._of_tables(entries, held)
        if arrays:
            return self._of_arrays(entries, dict.fromkeys(arrays))
        raise UserError(f"{printable(str(self.place))}: holds no vectors: {_NONE}")

    def _of_arrays(self, entries: Sequence[Entry], metadata: dict[str, str | None]) -> Iterator[Unit]:
        """metadata: of each file of vectors."""
        for path, beside_it in metadata.items():
            n = len(_array(self.root / path))
            if beside_it is not None:
                with readable(self.root / beside_it):
                    rows = pq.read_metadata(self.root / beside_it).num_rows
                if rows != n:
                    shown = printable(str(self.root / path))
                    raise UserError(f"{shown}: {n:,} vectors, but {rows:,} rows in {printable(beside_it)}")
            state = [state_of(self.root / path), None if beside_it is None else state_of(self.root / beside_it)]
            for first in range(0, n, ROWS_AT_ONCE):
                payload = {"array": path, "metadata": beside_it, "first": first, "caption": self.caption_column}
                yield Unit(payload, [payload, state], min(ROWS_AT_ONCE, n - first))
        yield from others(entries, {*metadata, *filter(None, metadata.values())})

    def _of_tables(self, entries: Sequence[Entry], columns: dict[str, str]) -> Iterator[Unit]:
        for path, column in columns.items():
            yield from groups(self.root, path, {"vectors": column, "caption": self.caption_column})
        yield from others(entries, columns)

    def held(self, payload: dict[str, Any], source: str) -> Iterator[Item]:
        if "array" in payload:
            return _of_array(self.root, payload, source)
        return _of_table(self.root / payload["table"], payload, source)

    def _column(self, path: Path) -> str | None:
        """The column of vectors; None where a table has none."""
        with readable(path):
            schema = pq.read_schema(path)
        able = [field.name for field in schema if _holds_vectors(field.type)]
        wanted = self.vector_column
        if wanted is not None and wanted not in able:
            has = printable(", ".join(able)) or "none"
            raise UserError(f"--vector-column {printable(wanted)}: {printable(str(path))} has no such; it has {has}")
        if wanted is None and len(able) > 1:
            has = printable(", ".join(able))
            raise UserError(f"{printable(str(path))}: columns {has} hold vectors; name one with --vector-column")
        return wanted or next(iter(able), None)


def _metadata(path: str, files: Sequence[str]) -> str | None:
    wanted = METADATA + path.removeprefix(CLIP_RETRIEVAL).removesuffix(".npy") + ".parquet"
    return wanted if wanted in files else None


def _array(path: Path) -> npt.NDArray[np.floating]:
    """The vectors of a file, mapped. Raises UserError for what is none, or of another shape."""
    try:
        found: npt.NDArray[np.floating] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{printable(str(path))}: not an array of vectors: {printable(str(error))}") from error
    if found.ndim != 2 or not np.issubdtype(found.dtype, np.floating):
        raise UserError(f"{printable(str(path))}: {found.dtype} of shape {found.shape}; vectors are (rows, dimension)")
    return found


def _of_array(root: Path, payload: dict[str, Any], source: str) -> Iterator[Item]:
    path, first = payload["array"], payload["first"]
    vectors_ND = _array(root / path)[first : first + ROWS_AT_ONCE].astype(np.float32)
    n = len(vectors_ND)
    captions, places = _told(root / payload["metadata"], payload, first, n) if payload["metadata"] else _nothing(n)
    for i in range(n):
        yield _given(f"{path}#{first + i}", source, captions[i], places[i], vectors_ND[i])


def _of_table(path: Path, payload: dict[str, Any], source: str) -> Iterator[Item]:
    number = payload["first"]
    with readable(path), pq.ParquetFile(path) as table:
        names = table.schema_arrow.names
        caption, place = _columns(names, payload["caption"])
        wanted = [payload["vectors"], *filter(None, (caption, place))]
        for batch in table.iter_batches(_BATCH, row_groups=[payload["group"]], columns=wanted):
            captions, places = (_texts(batch, name) for name in (caption, place))
            for vector, text, where in zip(batch[payload["vectors"]].to_pylist(), captions, places, strict=True):
                told = None if vector is None or None in vector else np.array(vector, np.float32)
                yield _given(f"{payload['table']}#{number}", source, text, where, told)
                number += 1


def _given(
    row: str, source: str, caption: str | None, place: str | None, vector_D: npt.NDArray[np.float32] | None
) -> GivenVector:
    return GivenVector(row, source, caption, place or row, vector_D)


def _told(path: Path, payload: dict[str, Any], first: int, n: int) -> tuple[list[str | None], list[str | None]]:
    """Captions and places of rows of the metadata, of which a group is read at a time."""
    with readable(path), pq.ParquetFile(path) as table:
        chosen = _columns(table.schema_arrow.names, payload["caption"])
        found: tuple[list[str | None], list[str | None]] = ([], [])
        begin = 0
        for group in range(table.num_row_groups):
            rows = table.metadata.row_group(group).num_rows
            low, high = max(first, begin) - begin, min(first + n, begin + rows) - begin
            if low < high:
                columns = [name for name in chosen if name]
                held = table.read_row_group(group, columns=columns).slice(low, high - low) if columns else None
                for told, name in zip(found, chosen, strict=True):
                    told += _texts(held, name) if held is not None and name else [None] * (high - low)
            begin += rows
        return found


def _columns(names: Sequence[str], caption: str | None) -> tuple[str | None, str | None]:
    if caption is not None and caption not in names:
        raise UserError(f"--caption-column {printable(caption)}: there is no such column; there is {', '.join(names)}")
    return caption or _first(CAPTIONS, names), _first(PLACES, names)


def _first(wanted: Sequence[str], names: Sequence[str]) -> str | None:
    return next((name for name in wanted if name in names), None)


def _nothing(n: int) -> tuple[list[str | None], list[str | None]]:
    return [None] * n, [None] * n


def _texts(rows: pa.Table | pa.RecordBatch, name: str | None) -> list[str | None]:
    return [None] * rows.num_rows if name is None else texts(rows[name])


def _holds_vectors(kind: pa.DataType) -> bool:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_list(kind) for is_list in lists) and bool(pa.types.is_floating(kind.value_type))
