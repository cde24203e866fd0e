"""Pictures to a reference index (matches.index says what one is).

Every item ends as a reference, as a rejected row of its own with its reason, as a duplicate of a reference, or as a
count of its kind. Pictures are decoded as they come, and no more are held than a batch of about _PIXELS_AT_ONCE.

Shapes: N references with a vector, D dimension.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sharpaudit.embedders.base import BATCH, NOWHERE, Describer, Embedder, embedder, open_embedder
from sharpaudit.embedders.weights import Shelf
from sharpaudit.errors import Status, UserError, printable
from sharpaudit.images import Pixels, UnreadableImage, decode, sha256_hex, thumbnail
from sharpaudit.matches.attempt import published, refuse_existing, remove_left
from sharpaudit.matches.index import FORMAT_VERSION, MANIFEST, ROWS, VECTORS, IndexManifest, sha256_of
from sharpaudit.matches.sources.base import Item, NotLookedAt, ReferencePicture, Repeated
from sharpaudit.tables.files import Files, naming
from sharpaudit.tables.records import checksummed
from sharpaudit.tables.schemas import REFERENCES

_ROWS_AT_ONCE = 64  # pictures described together and written as one row group
_PIXELS_AT_ONCE = 2**25
_MAX_KINDS = 100  # suffixes counted apart; a folder may hold as many as files
_MAX_REASONS = 20


@dataclass
class Reason:
    """Why rows were rejected, how many for such a reason (numbers in it may differ), and where the first came from."""

    text: str
    count: int
    example: str


@dataclass(frozen=True)
class IndexSummary:
    """What became of the pictures: pictures = duplicates + the sum of statuses.

    not_looked_at: files by kind. repeated: folders reached again. removed: folders that a terminated build had left.
    """

    pictures: int
    duplicates: int
    statuses: dict[str, int]
    digest: str
    not_looked_at: dict[str, int]
    repeated: int
    reasons: list[Reason]
    removed: list[str]

    @property
    def rejected(self) -> int:
        """Rows without a vector."""
        return sum(count for status, count in self.statuses.items() if status != Status.OK)

    @property
    def rejected_share(self) -> float:
        """Of references and rejected rows."""
        return self.rejected / sum(self.statuses.values())


def build_index(
    out: Path,
    name: str,
    pictures: Iterable[Item],
    training_size: int | None = None,
    *,
    shelf: Shelf = NOWHERE,
    batch_size: int = BATCH,
    device: str = "auto",
) -> IndexSummary:
    """Describe the pictures by the embedder of that name and publish them as the index `out`, which must not exist.

    Of several references with one id the first is kept and the others are counted. Pictures that cannot be read or
    described become rows with a reason. training_size: of how many pictures the training set is said to consist;
    UserError where there are more references. shelf: with the embedder's weights. batch_size: pictures that it
    takes at a time, on `device`; both change the index only where they change vectors.
    """
    card, files = embedder(name, shelf), Files()
    describer = open_embedder(card, batch_size, device)
    refuse_existing(out)
    files.make_folder(out.parent)
    removed = remove_left(out)
    with published(out, (VECTORS, ROWS, MANIFEST), files) as attempt:
        build = _write_rows(attempt, card.dimension, describer, pictures, training_size)
        manifest = _manifest_bytes(attempt, card, build, training_size)
        files.write(attempt / MANIFEST, manifest)
    return IndexSummary(
        pictures=build.duplicates + build.statuses.total(),
        duplicates=build.duplicates,
        statuses=dict(sorted(build.statuses.items())),
        digest=sha256_hex(manifest),
        not_looked_at=dict(sorted(build.not_looked_at.items())),
        repeated=build.repeated,
        reasons=sorted(build.reasons.values(), key=lambda reason: -reason.count),
        removed=removed,
    )


@dataclass
class _Build:
    """The counts of an index that is being written. seen: ids that are taken."""

    statuses: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    not_looked_at: Counter[str] = field(default_factory=Counter)
    repeated: int = 0
    duplicates: int = 0
    seen: set[str] = field(default_factory=set)
    reasons: dict[str, Reason] = field(default_factory=dict)

    def count(self, row: dict[str, Any]) -> None:
        """A row that is written."""
        self.statuses[row["status"]] += 1
        self.sources[row["source"]] += 1
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


Described = tuple[dict[str, Any], Pixels | None]
"""A row, and its picture where it could be decoded."""


def _write_rows(
    folder: Path, dimension: int, describer: Describer, items: Iterable[Item], training_size: int | None
) -> _Build:
    """Stream vectors and references into `folder`, so that an index may be larger than the memory."""
    build = _Build()
    options = {"compression": "zstd", "write_page_checksum": True}
    with (
        naming(folder),
        (folder / VECTORS).open("wb") as vectors,
        pq.ParquetWriter(folder / ROWS, REFERENCES.schema, **options) as table,
    ):
        _write_header(vectors, 0, dimension)
        for batch in _batches(items, build):
            rows, vectors_ND = _describe(batch, describer, build)
            if rows:
                table.write_table(pa.Table.from_pylist(rows, schema=REFERENCES.schema))
            vectors.write(vectors_ND.tobytes())
            if training_size is not None and build.statuses[Status.OK] > training_size:
                raise UserError(
                    f"--training-size {training_size:,}: the pictures given hold more than that; "
                    "give the number of pictures that the model was trained on, or leave the option out"
                )
        n_ok = build.statuses[Status.OK]
        if n_ok == 0:
            raise UserError(_nothing(build))
        vectors.seek(0)
        _write_header(vectors, n_ok, dimension)
    return build


def _nothing(build: _Build) -> str:
    first = next(iter(build.reasons.values()), None)
    told = f"; the first was refused: {printable(first.example)}: {first.text}" if first else ""
    passed = ", ".join(f"{n:,} {kind}" for kind, n in sorted(build.not_looked_at.items()))
    return f"none of {build.statuses.total()} pictures can be described, so there is nothing to index{told}" + (
        f"; not looked at: {passed}" if passed else ""
    )


def _write_header(stream: BinaryIO, n_rows: int, dimension: int) -> None:
    """The npy header; numpy pads it so that the number of rows can be put in afterwards."""
    header = {"descr": "<f4", "fortran_order": False, "shape": (n_rows, dimension)}
    np.lib.format.write_array_header_1_0(stream, header)


def _batches(items: Iterable[Item], build: _Build) -> Iterator[list[Described]]:
    """The pictures, decoded, as many at a time as are described together; whatever is no picture is counted."""
    batch: list[Described] = []
    pixels = 0
    for item in items:
        if not isinstance(item, ReferencePicture):
            build.pass_over(item)
            continue
        row = _row(item)
        if row["reference_id"] in build.seen:
            build.duplicates += 1
            continue
        row, image = _decoded(row, item)
        batch.append((row, image))
        pixels += 0 if image is None else image.shape[0] * image.shape[1]
        if len(batch) >= _ROWS_AT_ONCE or pixels >= _PIXELS_AT_ONCE:
            yield batch
            batch, pixels = [], 0
    if batch:
        yield batch


def _describe(
    batch: list[Described], describer: Describer, build: _Build
) -> tuple[list[dict[str, Any]], npt.NDArray[np.float32]]:
    """The rows of a batch and the vectors of those that are ok, in the same order."""
    vectors_ND = describer.describe([image for _, image in batch if image is not None])
    usable_N = np.logical_and.reduce(np.isfinite(vectors_ND), axis=1)
    rows: list[dict[str, Any]] = []
    kept: list[int] = []
    n = -1
    for row, image in batch:
        n += image is not None
        if image is not None and not usable_N[n]:
            row |= {"status": Status.NO_DESCRIPTOR.value, "reason": Status.NO_DESCRIPTOR.describe()}
        if row["reference_id"] in build.seen:
            build.duplicates += 1
            continue
        if row["status"] == Status.OK:
            kept.append(n)
        elif row["reference_id"] == _content_id(row):
            # Of a thousand empty files each is a picture that is missing, and not one of them a copy of another.
            row["reference_id"] = sha256_hex(f"{row['source']}\0{row['path']}\0{build.statuses.total()}".encode())[:32]
        build.seen.add(row["reference_id"])
        build.count(row)
        rows.append(row)
    return rows, vectors_ND[kept]


def _row(picture: ReferencePicture) -> dict[str, Any]:
    sha256 = None if picture.data is None else sha256_hex(picture.data)
    row: dict[str, Any] = {
        "source": _text(picture.source),
        "caption": None if picture.caption is None else _text(picture.caption),
        "path": _text(picture.path),
        "image_sha256": sha256,
        "status": Status.OK.value,
        "reason": None,
    }
    return row | {"reference_id": _text(picture.reference_id) if picture.reference_id else _content_id(row)}


def _content_id(row: dict[str, Any]) -> str | None:
    sha256: str | None = row["image_sha256"]
    return sha256 and sha256[:32]


def _decoded(row: dict[str, Any], picture: ReferencePicture) -> Described:
    try:
        if picture.data is None:
            raise UnreadableImage(picture.problem)
        image = decode(picture.data)
    except UnreadableImage as error:
        return row | {"status": Status.UNREADABLE_IMAGE.value, "reason": str(error)}, None
    return row | {"height_px": image.shape[0], "width_px": image.shape[1], "thumbnail": thumbnail(image)}, image


def _text(text: str) -> str:
    """Valid Unicode: a file name may hold bytes that are none, and one of them would fail its whole batch."""
    return text.encode("utf-8", "backslashreplace").decode()


def _manifest_bytes(folder: Path, card: Embedder, build: _Build, training_size: int | None) -> bytes:
    manifest = IndexManifest(
        format_version=FORMAT_VERSION,
        profile=card.name,
        profile_version=card.version,
        profile_digest=card.digest,
        dimension=card.dimension,
        rows=build.statuses.total(),
        vectors=build.statuses[Status.OK],
        duplicates=build.duplicates,
        statuses=dict(build.statuses),
        sources=dict(build.sources),
        sha256={name: sha256_of(folder / name) for name in (VECTORS, ROWS)},
        not_looked_at=dict(build.not_looked_at),
        training_size=training_size,
        weights=None if card.weights is None else card.weights.told(),
    )
    return checksummed(asdict(manifest))
