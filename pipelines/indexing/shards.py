"""One unit of a training set, described: what it holds as rows of a shard, and these rows as pieces of an index.

Shards lie in the folder of the build (indexing/build.py) until the index is written from them. A row is a picture with
its vector, or what is no picture.

Shapes: D dimension.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.stages.base import Doer, Work
from sharpaudit.embedders.base import Describer, Embedder, embedder, open_embedder
from sharpaudit.embedders.weights import Shelf
from sharpaudit.errors import Status, UserError
from sharpaudit.matches.build import described
from sharpaudit.matches.given import taken
from sharpaudit.matches.sources.archives import ArchiveLayout
from sharpaudit.matches.sources.base import Layout, NotLookedAt, Repeated
from sharpaudit.matches.sources.embeddings import EmbeddingLayout
from sharpaudit.matches.sources.folder import FolderLayout
from sharpaudit.matches.sources.parquet import TableLayout
from sharpaudit.matches.writing import Piece, Row
from sharpaudit.plugs import require
from sharpaudit.tables.records import digest_of
from sharpaudit.tables.schemas import REFERENCES, define
from sharpaudit.tables.shards import Manifest, TableFolder

SETTINGS, UNITS = "build.json", "units.jsonl"
LAYOUTS: dict[str, type[Layout]] = {
    "folder": FolderLayout,
    "webdataset": ArchiveLayout,
    "parquet": TableLayout,
    "embeddings": EmbeddingLayout,
}
OWN = ("status", "reason")
COLUMNS = {field.name: field.type for field in REFERENCES.schema if field.name not in OWN}
SHARDS = define(
    "pictures",
    "index",
    ("number",),
    {"number": pa.int64(), "item": pa.string(), "kind": pa.string(), "vector": pa.binary(), "scaled": pa.bool_()}
    | COLUMNS,
)
"""item: picture, passed or repeated. kind: of what is no picture. vector: float32, those of all embedders one after
another, of a picture that has them. scaled: see matches/given.py."""


def layout_of(told: dict[str, Any]) -> Layout:
    """The layout that the settings of a build name."""
    paths = {name: Path(value) for name, value in told["paths"].items()}
    return LAYOUTS[told["layout"]](**paths, **told["options"])


def cards_of(told: dict[str, Any]) -> list[Embedder]:
    """The embedders that they name, of the weights where they say that these lie. Raises UserError."""
    shelf = Shelf(None if told["weights"] is None else Path(told["weights"]), tuple(told["weights_sha256"]))
    return [embedder(name, shelf) for name in told["profiles"]]


def fingerprint_of(cards: Sequence[Embedder], source: dict[str, Any]) -> str:
    """What shards of a build have in common: by whom they are described, and of what."""
    return digest_of([[[card.name, card.version, card.digest] for card in cards], source])


class PictureWorker:
    """Describes units. The embedder is opened with the first of them."""

    def __init__(self, root: Path, guard: Callable[[], None]) -> None:
        self._root = root
        self._told = json.loads((root / SETTINGS).read_bytes())
        require(self._told["plugs"], same=True)
        self._layout = layout_of(self._told["source"])
        self._folder = TableFolder(root, SHARDS, self._told["fingerprint"], guard=guard)
        self._cards: list[Embedder] | None = None
        self._describers: list[Describer] = []

    def do(self, work: Work) -> Manifest:
        """Describe a unit and commit its rows; one that is committed already is returned as it stands."""
        done = self._folder.manifest(work.shard)
        if done is not None:
            return done
        begun = time.monotonic()
        if self._cards is None:
            self._cards = self._opened()
        with (self._root / UNITS).open("rb") as stream:
            stream.seek(work.payload["at"])
            payload = json.loads(stream.readline())
        items = self._layout.items(payload)
        if self._layout.gives_vectors:
            found = taken(items, self._cards[0])
        else:
            found = described(items, self._describers, at_once=self._told["batch_size"])
        rows = list(_rows(found))
        made = pa.Table.from_pylist([{"number": i} | row for i, row in enumerate(rows)], SHARDS.schema)
        return self._folder.commit(
            work.shard, made, input_digest=work.input_digest, duration_s=time.monotonic() - begun
        )

    def _opened(self) -> list[Embedder]:
        """The embedders' cards; what describes pictures is opened beside them."""
        cards = cards_of(self._told)
        if fingerprint_of(cards, self._told["source"]) != self._told["fingerprint"]:
            raise UserError(
                "the weights of an embedder are not those that the build began with: put the same files on every "
                "machine, and give the same command again"
            )
        if not self._layout.gives_vectors:
            self._describers = [open_embedder(c, self._told["batch_size"], self._told["device"]) for c in cards]
        return cards


def picture_worker(root: Path, guard: Callable[[], None]) -> Doer:
    """Whoever describes the units of a build in a folder."""
    return PictureWorker(root, guard)


def _rows(pieces: Iterator[Piece]) -> Iterator[Row]:
    for piece in pieces:
        if isinstance(piece, Repeated):
            yield {"item": "repeated", "status": Status.OK.value}
        elif isinstance(piece, NotLookedAt):
            yield {"item": "passed", "kind": piece.kind, "status": Status.OK.value}
        else:
            rows, vectors = piece
            together = iter(np.concatenate(vectors, axis=1))
            for row in rows:
                ok = row["status"] == Status.OK
                yield row | {"item": "picture", "vector": next(together).tobytes() if ok else None}


def pieces(shard: pa.Table, dimensions: Sequence[int]) -> Iterator[Piece]:
    """The rows of a shard as an index takes them; of what is no picture only the kind counts there.

    dimensions: of the embedders.
    """
    for batch in shard.to_batches(max_chunksize=1024):
        rows, vectors = list[Row](), list[bytes]()
        for row in batch.to_pylist():
            if row["item"] == "repeated":
                yield Repeated("")
            elif row["item"] == "passed":
                yield NotLookedAt("", row["kind"])
            else:
                if row["vector"] is not None:
                    vectors.append(row["vector"])
                rows.append({name: row[name] for name in (*REFERENCES.schema.names, "scaled")})
        if rows:
            together = np.frombuffer(b"".join(vectors), dtype=np.float32).reshape(-1, sum(dimensions))
            yield rows, np.split(together, np.cumsum(dimensions)[:-1], axis=1)
