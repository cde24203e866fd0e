"""Samples to nearest training pictures: what the stages bands and match, replay and validate have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sharpaudit.config import AuditConfig
from sharpaudit.devices import choose_device
from sharpaudit.embedders.base import open_embedder
from sharpaudit.errors import Status
from sharpaudit.images import Pixels, UnreadableImage, decode
from sharpaudit.matches.approximation import OpenStructure
from sharpaudit.matches.index import ReferenceIndex
from sharpaudit.matches.search.approximate import Recall, recall_of
from sharpaudit.matches.search.engines import engine_for
from sharpaudit.matches.search.flat import search
from sharpaudit.matches.search.order import Rows, Similarities, similarities
from sharpaudit.matches.search.placing import place
from sharpaudit.matches.search.vectors import Floats
from sharpaudit.tables.image_store import read_image

Outcome = list["Neighbour"] | Status


@dataclass(frozen=True)
class Neighbour:
    """A training picture and its similarity to a sample, a cosine in [-1, 1]. row: of its vector in the index.

    verified: the same by the second instrument; None without one, or where it cannot describe the sample.
    """

    reference_id: str
    similarity: float
    row: int
    verified: float | None = None


class SampleSearch:
    """Holds the index and its embedder. batch_size: of pictures. device: as `model.device` names it.

    second: the same index with the vectors of the embedder that verifies what the first finds, None for none.
    structure: that of `matches.search`, None for exact search. vectors, workers: see search/placing.py. told: how it
    searches, for people.
    """

    def __init__(
        self,
        index: ReferenceIndex,
        batch_size: int,
        device: str = "auto",
        *,
        second: ReferenceIndex | None = None,
        structure: OpenStructure | None = None,
        vectors: str = "auto",
        workers: int = 1,
    ) -> None:
        self.index, self.second, self.structure = index, second, structure
        self._describer = open_embedder(index.embedder, batch_size, device)
        self._verifier = None if second is None else open_embedder(second.embedder, batch_size, device)
        self._engine = engine_for(choose_device(device))
        placing = place(vectors, index.vectors, choose_device(device), workers)
        index.vectors.held = placing.held
        self.told = f"exact; {placing.told}" if structure is None else structure.described

    @staticmethod
    def of(
        index: ReferenceIndex, second: ReferenceIndex | None, structure: OpenStructure | None, config: AuditConfig
    ) -> SampleSearch:
        """As an audit computes: on the device of its model."""
        matches, workers = config.matches, config.run.workers if config.run.executor == "ray" else 1
        return SampleSearch(
            index,
            matches.batch_size,
            config.model.device,
            second=second,
            structure=structure,
            vectors=matches.vectors,
            workers=workers,
        )

    def nearest(self, pictures: Sequence[Pixels | None], k: int) -> list[Outcome]:
        """The k nearest training pictures of each picture, best first, or why there are none."""
        return self._nearest(pictures, k, measured=False)[0]

    def described(self, pictures: Sequence[Pixels]) -> list[npt.NDArray[np.float32] | None]:
        """The descriptor of each picture, of length 1; None where it has none."""
        rows_ND = self._describer.describe(pictures) if pictures else ()
        return [row_D if np.isfinite(row_D).all() else None for row_D in rows_ND]

    def measured(self, pictures: Sequence[Pixels | None], k: int) -> tuple[list[Outcome], Recall | None]:
        """The same, and how many of these have the neighbour that exact search finds; None where it is that one."""
        return self._nearest(pictures, k, measured=self.structure is not None)

    def _nearest(
        self, pictures: Sequence[Pixels | None], k: int, *, measured: bool
    ) -> tuple[list[Outcome], Recall | None]:
        found: list[Outcome] = [Status.UNREADABLE_IMAGE] * len(pictures)
        images = {i: image for i, image in enumerate(pictures) if image is not None}
        recall = Recall(0, 0) if measured else None
        if not images:
            return found, recall
        vectors = self._describer.describe(list(images.values()))
        usable = np.isfinite(vectors).all(axis=1)
        rows = np.array(list(images))
        for row in rows[~usable]:
            found[row] = Status.NO_DESCRIPTOR
        if usable.any():
            # The vectors are read from files: changed meanwhile, they would be another index's.
            with self.index.unchanged():
                values_MK, references = self._search(vectors[usable], k)
                if measured:
                    recall = recall_of(values_MK, search(self.index.vectors, vectors[usable], 1, self._engine)[0])
            verified = self._verified([images[row] for row in rows[usable]], references)
            for row, *told in zip(rows[usable], values_MK, references, verified, strict=True):
                found[row] = [
                    Neighbour(self.index.reference_id(int(name)), float(value), int(name), also)
                    for value, name, also in zip(*told, strict=True)
                ]
        for part in (self.index, self.second, self.structure):
            if part is not None:
                part.require_unchanged()
        return found, recall

    def _verified(self, images: list[Pixels], rows_MK: Rows) -> list[list[float | None]]:
        """What the second instrument sees of each picture and its neighbours, (M, K)."""
        if self.second is None or self._verifier is None:
            return [[None] * rows_MK.shape[1]] * len(images)
        vectors_MD = self._verifier.describe(images)
        usable_M: list[bool] = np.isfinite(vectors_MD.sum(axis=1)).tolist()
        with self.second.unchanged():
            seen_MK = similarities(self.second.vectors, np.nan_to_num(vectors_MD), rows_MK)
        return [row if able else [None] * len(row) for row, able in zip(seen_MK.tolist(), usable_M, strict=True)]

    def _search(self, queries: Floats, k: int) -> tuple[Similarities, Rows]:
        if self.structure is not None:
            return self.structure.search(queries, k)
        return search(self.index.vectors, queries, k, self._engine)


def stored_pictures(root: Path, paths: Sequence[str]) -> list[Pixels | None]:
    """Pictures of a run by their paths within it, None for one that cannot be read.

    Raises IntegrityError for one that is missing or was changed.
    """
    return [_load(root, path) for path in paths]


def _load(root: Path, path: str) -> Pixels | None:
    try:
        return decode(read_image(root, path))
    except UnreadableImage:
        return None
