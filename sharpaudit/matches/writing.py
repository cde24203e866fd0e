"""Writing an index: rows and vectors as they come, in parts, so that it may be larger than the memory.

Of several references with one id the first is kept and the others are counted. matches/index.py says what an index is.

Shapes: N references with a vector, D dimension.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sharpaudit.embedders.base import Embedder
from sharpaudit.errors import Status, UserError, printable
from sharpaudit.images import sha256_hex
from sharpaudit.matches.index import sha256_of
from sharpaudit.matches.manifest import FORMAT_VERSION, IndexManifest, Part, Profile, table_name, vectors_name
from sharpaudit.matches.sources.base import NotLookedAt, Repeated
from sharpaudit.tables.schemas import REFERENCES

PART_ROWS = 262_144
"""Rows of a part, but for the last batch that goes into it."""
_MAX_KINDS = 100  # suffixes counted apart; a folder may hold as many as files
_MAX_REASONS = 20
Row = dict[str, Any]
Piece = tuple[list[Row], list[npt.NDArray[np.float32]]] | NotLookedAt | Repeated
"""Rows of REFERENCES and, by each embedder, vectors of those that are ok, in the same order; or what is no picture."""


@dataclass
class Reason:
    """Why rows were rejected, how many for such a reason (numbers in it may differ), and where the first came from."""

    text: str
    count: int
    example: str


@dataclass
class Counts:
    """What became of what was given. seen: ids that are taken. scaled: given vectors that were not of length 1."""

    statuses: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    not_looked_at: Counter[str] = field(default_factory=Counter)
    repeated: int = 0
    duplicates: int = 0
    scaled: int = 0
    seen: set[str] = field(default_factory=set)
    reasons: dict[str, Reason] = field(default_factory=dict)

    def count(self, row: Row) -> None:
        """A row that is written."""
        self.statuses[row["status"]] += 1
        self.sources[row["source"]] += 1
        self.scaled += bool(row.get("scaled"))
        if row["reason"] is None:
            return
        # Sizes and places in a reason differ from picture to picture.
        kind = re.sub(r"\d+", "0", row["reason"])
        if kind not in self.reasons and len(self.reasons) >= _MAX_REASONS:
            kind = "others"
        reason = self.reasons.setdefault(
            kind, Reason("other reasons" if kind == "others" else row["reason"], 0, row["path"])
        )
        reason.count += 1

    def pass_over(self, item: NotLookedAt | Repeated) -> None:
        """What is no picture."""
        if isinstance(item, Repeated):
            self.repeated += 1
        else:
            known = item.kind in self.not_looked_at or len(self.not_looked_at) < _MAX_KINDS
            self.not_looked_at[item.kind if known else "other suffix"] += 1


@dataclass(frozen=True)
class Kept:
    """How an index keeps what it knows. dtype: of vectors, float32 or float16. thumbnails: whether pictures go along.

    training_size: of how many pictures the training set is said to consist; UserError where there are more references.
    given: whether the vectors were made by somebody else.
    """

    dtype: str = "float32"
    thumbnails: bool = True
    training_size: int | None = None
    given: bool = False


class IndexWriter:
    """Puts an index into `folder`, a new one. Closed by `close`, or left as it is where something went wrong.

    cards: of the embedders.
    """

    def __init__(self, folder: Path, cards: Sequence[Embedder], kept: Kept) -> None:
        self.counts = Counts()
        self._folder, self._cards, self._kept, self._dtype = folder, cards, kept, np.dtype(kept.dtype)
        self._parts: list[Part] = []
        self._table: pq.ParquetWriter | None = None
        self._vectors: list[BinaryIO] = []
        self._rows = self._n_vectors = 0
        folders = [(folder / vectors_name(card.name, 0)).parent for card in cards]
        if len(set(folders)) < len(folders):
            raise UserError(f"{', '.join(c.name for c in cards)}: two names differ by odd signs alone; choose one")
        for place in ((folder / table_name(0)).parent, *folders):
            place.mkdir(parents=True)

    def __enter__(self) -> IndexWriter:
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as stack:
            for stream in (*self._vectors, *([self._table] if self._table else [])):
                stack.callback(stream.close)
        self._table, self._vectors = None, []

    def knows(self, reference_id: str | None) -> bool:
        """Whether a picture of that id is in the index, so that this one is a duplicate; if so it is counted."""
        known = reference_id in self.counts.seen
        self.counts.duplicates += known
        return known

    def take(self, pieces: Iterable[Piece]) -> None:
        """Put all of them in."""
        for piece in pieces:
            if isinstance(piece, NotLookedAt | Repeated):
                self.counts.pass_over(piece)
            else:
                self.add(*piece)

    def add(self, rows: Sequence[Row], vectors: Sequence[npt.NDArray[np.float32]]) -> None:
        """Rows of REFERENCES, and by each embedder the vectors of those that are ok, (N, D) in the same order."""
        kept, chosen, n = [], [], -1
        for row in rows:
            ok = row["status"] == Status.OK
            n += ok
            if self.knows(row["reference_id"]):
                continue
            if not ok and row["reference_id"] == content_id(row):
                # Of a thousand empty files each is a picture that is missing, and not one of them a copy of another.
                place = f"{row['source']}\0{row['path']}\0{self.counts.statuses.total()}"
                row = row | {"reference_id": sha256_hex(place.encode())[:32]}
            self.counts.seen.add(row["reference_id"])
            self.counts.count(row)
            kept.append(row if self._kept.thumbnails else row | {"thumbnail": None})
            chosen += [n] * ok
        if kept:
            self._write(kept, [vectors_ND[chosen] for vectors_ND in vectors])
        most = self._kept.training_size
        if most is not None and self.counts.statuses[Status.OK] > most:
            raise UserError(
                f"--training-size {most:,}: the pictures given hold more than that; "
                "give the number of pictures that the model was trained on, or leave the option out"
            )

    def _write(self, rows: Sequence[Row], vectors: Sequence[npt.NDArray[np.float32]]) -> None:
        if self._table is None:
            number = len(self._parts)
            options = {"compression": "zstd", "write_page_checksum": True}
            self._table = pq.ParquetWriter(self._folder / table_name(number), REFERENCES.schema, **options)
            for card in self._cards:
                self._vectors.append((self._folder / vectors_name(card.name, number)).open("wb"))
                self._header(self._vectors[-1], 0, card.dimension)
        self._table.write_table(pa.Table.from_pylist(list(rows), schema=REFERENCES.schema))
        for stream, vectors_ND in zip(self._vectors, vectors, strict=True):
            stream.write(np.ascontiguousarray(vectors_ND, dtype=self._dtype).tobytes())
        self._rows, self._n_vectors = self._rows + len(rows), self._n_vectors + len(vectors[0])
        if self._rows >= PART_ROWS:
            self._end_part()

    def _header(self, stream: BinaryIO, n: int, dimension: int) -> None:
        """The npy header; numpy pads it so that the number of rows can be put in afterwards."""
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (n, dimension)}
        np.lib.format.write_array_header_1_0(stream, header)

    def _end_part(self) -> None:
        if self._table is None:
            return
        self._table.close()
        for stream, card in zip(self._vectors, self._cards, strict=True):
            stream.seek(0)
            self._header(stream, self._n_vectors, card.dimension)
            stream.close()
        self._parts.append(Part(self._rows, self._n_vectors))
        self._table, self._vectors = None, []
        self._rows = self._n_vectors = 0

    def close(self) -> IndexManifest:
        """End the last part; what the manifest is to say. Raises UserError where no picture has a vector."""
        if self.counts.statuses[Status.OK] == 0:
            raise UserError(_nothing(self.counts))
        self._end_part()
        numbers = range(len(self._parts))
        names = [*map(table_name, numbers), *(vectors_name(c.name, part) for c in self._cards for part in numbers)]
        profiles = {card.name: profile_of(card, self._dtype.name, self._kept.given) for card in self._cards}
        return IndexManifest(
            format_version=FORMAT_VERSION,
            parts=self._parts,
            profiles=profiles,
            thumbnails=self._kept.thumbnails,
            rows=self.counts.statuses.total(),
            vectors=self.counts.statuses[Status.OK],
            duplicates=self.counts.duplicates,
            statuses=dict(sorted(self.counts.statuses.items())),
            sources=dict(sorted(self.counts.sources.items())),
            sha256={name: sha256_of(self._folder / name) for name in names},
            not_looked_at=dict(self.counts.not_looked_at),
            training_size=self._kept.training_size,
        )


def profile_of(card: Embedder, dtype: str, given: bool = False) -> Profile:
    """What a manifest says of an embedder. dtype: of the stored vectors. given: whether somebody else made them."""
    weights = None if card.weights is None else card.weights.told()
    return Profile(card.version, card.digest, card.dimension, dtype, weights, given)


def content_id(row: Row) -> str | None:
    """The id of a picture by its bytes; None where they could not be had."""
    sha256: str | None = row["image_sha256"]
    return sha256 and sha256[:32]


def _nothing(counts: Counts) -> str:
    first = next(iter(counts.reasons.values()), None)
    told = f"; the first was refused: {printable(first.example)}: {first.text}" if first else ""
    passed = ", ".join(f"{n:,} {kind}" for kind, n in sorted(counts.not_looked_at.items()))
    return f"none of {counts.statuses.total()} pictures can be described, so there is nothing to index{told}" + (
        f"; not looked at: {passed}" if passed else ""
    )
