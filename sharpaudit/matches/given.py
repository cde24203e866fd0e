"""Vectors that somebody else made, as an index takes them: scaled to length 1, or rejected where they are no direction.

Shapes: N references with a vector, D dimension.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from sharpaudit.embedders.base import UNIT_TOLERANCE, Embedder
from sharpaudit.errors import Status, UserError, printable
from sharpaudit.matches.sources.base import GivenVector, Item, NotLookedAt, Repeated
from sharpaudit.matches.writing import Piece, Row

_ROWS_AT_ONCE = 1024


def taken(items: Iterable[Item], card: Embedder) -> Iterator[Piece]:
    """Items with vectors of this embedder as they are written, a batch at a time; what is none comes as it is.

    A row tells whether its vector was scaled. Raises UserError for a vector of another dimension.
    """
    batch: list[GivenVector] = []
    for item in items:
        if isinstance(item, NotLookedAt | Repeated):
            yield item
        elif isinstance(item, GivenVector):
            batch.append(item)
            if len(batch) == _ROWS_AT_ONCE:
                yield _rows(batch, card)
                batch = []
        else:
            raise TypeError(f"{item.path}: a picture among vectors")
    if batch:
        yield _rows(batch, card)


def _rows(batch: Sequence[GivenVector], card: Embedder) -> Piece:
    rows: list[Row] = []
    vectors = []
    for item in batch:
        vector_D = item.vector_D
        if vector_D is not None and len(vector_D) != card.dimension:
            raise UserError(
                f"{printable(item.path)}: its vector has {len(vector_D)} numbers, those of {printable(card.name)} have "
                f"{card.dimension}: name the embedder that made them"
            )
        length = 0.0 if vector_D is None else float(np.linalg.norm(vector_D.astype(np.float64)))
        usable = bool(np.isfinite(length)) and length > 0
        row: Row = {
            "reference_id": _text(item.reference_id),
            "source": _text(item.source),
            "caption": None if item.caption is None else _text(item.caption),
            "path": _text(item.path),
            "image_sha256": None,
            "status": (Status.OK if usable else Status.NO_DESCRIPTOR).value,
            "reason": None if usable else "its vector is no direction",
            "scaled": usable and abs(length - 1) > UNIT_TOLERANCE,
        }
        rows.append(row)
        if usable and vector_D is not None:
            vectors.append((vector_D / length).astype(np.float32) if row["scaled"] else vector_D)
    return rows, [np.array(vectors, np.float32).reshape(len(vectors), card.dimension)]


def _text(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
