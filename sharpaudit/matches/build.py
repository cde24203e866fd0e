"""Pictures to a reference index (matches.index says what one is).

Every item ends as a reference, as a rejected row of its own with its reason, as a duplicate of a reference, or as a
count of its kind. Pictures are decoded as they come, and no more are held than a batch of about _PIXELS_AT_ONCE.

Shapes: N references with a vector, D dimension.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sharpaudit.embedders.base import BATCH, NOWHERE, Describer, Embedder, embedder, open_embedder
from sharpaudit.embedders.weights import Shelf
from sharpaudit.errors import Status
from sharpaudit.images import Pixels, UnreadableImage, decode, sha256_hex, thumbnail
from sharpaudit.matches.attempt import published, refuse_existing, remove_left
from sharpaudit.matches.manifest import MANIFEST
from sharpaudit.matches.sources.base import GivenVector, Item, ReferencePicture
from sharpaudit.matches.writing import Counts, IndexWriter, Kept, Piece, Reason, Row, content_id
from sharpaudit.tables.files import Files, naming
from sharpaudit.tables.liveness import answered

_ROWS_AT_ONCE = 64  # pictures described together, where an embedder takes no more at a time
_PIXELS_AT_ONCE = 2**25


@dataclass(frozen=True)
class IndexSummary:
    """What became of the pictures: pictures = duplicates + the sum of statuses.

    not_looked_at: files by kind. repeated: folders reached again. removed: folders that a terminated build had left.
    scaled: given vectors that were not of length 1.
    """

    pictures: int
    duplicates: int
    statuses: dict[str, int]
    digest: str
    not_looked_at: dict[str, int]
    repeated: int
    reasons: list[Reason]
    removed: list[str]
    scaled: int = 0

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
    names: str | Sequence[str],
    pictures: Iterable[Item],
    training_size: int | None = None,
    *,
    shelf: Shelf = NOWHERE,
    batch_size: int = BATCH,
    device: str = "auto",
    dtype: str = "float32",
) -> IndexSummary:
    """Describe the pictures by the embedders of these names and publish them as the index `out`, which must not exist.

    Of several references with one id the first is kept and the others are counted. Pictures that cannot be read or
    described become rows with a reason. training_size: of how many pictures the training set is said to consist;
    UserError where there are more references. shelf: with the embedders' weights. batch_size: pictures that one
    takes at a time, on `device`; both change the index only where they change vectors. dtype: of the vectors that are
    kept, float32 or float16.
    """
    cards = [embedder(name, shelf) for name in ([names] if isinstance(names, str) else names)]
    describers = [open_embedder(card, batch_size, device) for card in cards]

    def write(writer: IndexWriter) -> None:
        writer.take(described(pictures, describers, writer.knows, at_once=batch_size))

    return write_index(out, cards, Kept(training_size=training_size, dtype=dtype), write)


def write_index(out: Path, cards: Sequence[Embedder], kept: Kept, write: Callable[[IndexWriter], None]) -> IndexSummary:
    """Publish what `write` puts into a writer as the index `out`, which must not exist."""
    refuse_existing(out)
    files = Files()
    files.make_folder(out.parent)
    removed = remove_left(out)
    with published(out, files) as attempt:
        with naming(attempt), IndexWriter(attempt, cards, kept) as writer:
            write(writer)
            manifest = writer.close().to_bytes()
        files.write(attempt / MANIFEST, manifest)
    return _summary(writer.counts, sha256_hex(manifest), removed)


def _summary(counts: Counts, digest: str, removed: list[str]) -> IndexSummary:
    return IndexSummary(
        pictures=counts.duplicates + counts.statuses.total(),
        duplicates=counts.duplicates,
        statuses=dict(sorted(counts.statuses.items())),
        digest=digest,
        not_looked_at=dict(sorted(counts.not_looked_at.items())),
        repeated=counts.repeated,
        reasons=sorted(counts.reasons.values(), key=lambda reason: -reason.count),
        removed=removed,
        scaled=counts.scaled,
    )


_Decoded = tuple[Row, Pixels | None]


def described(
    items: Iterable[Item],
    describers: Sequence[Describer],
    known: Callable[[str | None], bool] = lambda _: False,
    *,
    at_once: int = 1,
) -> Iterator[Piece]:
    """Items as they are written, a batch at a time. known: of an id, whether its picture need not be looked at.

    at_once: pictures that an embedder takes at a time; no fewer are described together.
    """
    batch: list[_Decoded] = []
    pixels = 0
    for item in items:
        if isinstance(item, GivenVector):
            raise TypeError(f"{item.path}: a vector among pictures")
        if not isinstance(item, ReferencePicture):
            yield item
            continue
        row = _row(item)
        if known(row["reference_id"]):
            continue
        row, image = _decoded(row, item)
        batch.append((row, image))
        pixels += 0 if image is None else image.shape[0] * image.shape[1]
        if len(batch) >= max(_ROWS_AT_ONCE, at_once) or pixels >= _PIXELS_AT_ONCE:
            yield _described(batch, describers)
            batch, pixels = [], 0
    if batch:
        yield _described(batch, describers)


def _described(
    batch: list[_Decoded], describers: Sequence[Describer]
) -> tuple[list[Row], list[npt.NDArray[np.float32]]]:
    images = [image for _, image in batch if image is not None]
    vectors = [describer.describe(images) for describer in describers]
    # What one of them cannot describe could not be judged by all.
    usable_N = np.logical_and.reduce([np.logical_and.reduce(np.isfinite(rows), axis=1) for rows in vectors])
    n = -1
    answered()
    rows = []
    for row, image in batch:
        n += image is not None
        if image is not None and not usable_N[n]:
            row |= {"status": Status.NO_DESCRIPTOR.value, "reason": Status.NO_DESCRIPTOR.describe()}
        rows.append(row)
    return rows, [vectors_ND[usable_N] for vectors_ND in vectors]


def _row(picture: ReferencePicture) -> Row:
    sha256 = None if picture.data is None else sha256_hex(picture.data)
    row: dict[str, Any] = {
        "source": _text(picture.source),
        "caption": None if picture.caption is None else _text(picture.caption),
        "path": _text(picture.path),
        "image_sha256": sha256,
        "status": Status.OK.value,
        "reason": None,
    }
    return row | {"reference_id": _text(picture.reference_id) if picture.reference_id else content_id(row)}


def _decoded(row: Row, picture: ReferencePicture) -> _Decoded:
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
