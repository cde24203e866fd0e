"""Samples to nearest training pictures: what the stages bands and match, replay and validate have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

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
from sharpaudit.matches.search.order import Rows, Similarities
from sharpaudit.matches.search.placing import place
from sharpaudit.matches.search.vectors import Floats
from sharpaudit.tables.image_store import read_image

Outcome = list["Neighbour"] | Status


@dataclass(frozen=True)
class Neighbour:
    """A training picture and its similarity to a sample, a cosine in [-1, 1]. row: of its vector in the index."""

    reference_id: str
    similarity: float
    row: int


class SampleSearch:
    """Holds the index and its embedder. batch_size: of pictures. device: as `model.device` names it.

    structure: that of `matches.search`, None for exact search. vectors, workers: see search/placing.py. told: how it
    searches, for people.
    """

    def __init__(
        self,
        index: ReferenceIndex,
        batch_size: int,
        device: str = "auto",
        *,
        structure: OpenStructure | None = None,
        vectors: str = "auto",
        workers: int = 1,
    ) -> None:
        self.index, self.structure = index, structure
        self._describer = open_embedder(index.embedder, batch_size, device)
        self._engine = engine_for(choose_device(device))
        placing = place(vectors, index.vectors, choose_device(device), workers)
        index.vectors.held = placing.held
        self.told = f"exact; {placing.told}" if structure is None else structure.described

    @staticmethod
    def of(index: ReferenceIndex, structure: OpenStructure | None, config: AuditConfig) -> SampleSearch:
        """As an audit computes: on the device of its model."""
        matches, workers = config.matches, config.run.workers if config.run.executor == "ray" else 1
        return SampleSearch(
            index,
            matches.batch_size,
            config.model.device,
            structure=structure,
            vectors=matches.vectors,
            workers=workers,
        )

    def nearest(self, pictures: Sequence[Pixels | None], k: int) -> list[Outcome]:
        """The k nearest training pictures of each picture, best first, or why there are none."""
        return self._nearest(pictures, k, measured=False)[0]

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
                similarities, references = self._search(vectors[usable], k)
                if measured:
                    recall = recall_of(similarities, search(self.index.vectors, vectors[usable], 1, self._engine)[0])
            for row, values, names in zip(rows[usable], similarities, references, strict=True):
                found[row] = [
                    Neighbour(self.index.reference_id(int(name)), float(value), int(name))
                    for value, name in zip(values, names, strict=True)
                ]
        self.index.require_unchanged()
        return found, recall

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
