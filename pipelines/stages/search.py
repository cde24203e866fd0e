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
from sharpaudit.matches.index import ReferenceIndex
from sharpaudit.matches.search.engines import engine_for
from sharpaudit.matches.search.flat import search
from sharpaudit.tables.image_store import read_image


@dataclass(frozen=True)
class Neighbour:
    """A training picture and its similarity to a sample, a cosine in [-1, 1]. row: of its vector in the index."""

    reference_id: str
    similarity: float
    row: int


class SampleSearch:
    """Holds the index and its embedder. batch_size: of pictures. device: as `model.device` names it."""

    def __init__(self, index: ReferenceIndex, batch_size: int, device: str = "auto") -> None:
        self.index = index
        self._describer = open_embedder(index.embedder, batch_size, device)
        self._engine = engine_for(choose_device(device))

    @staticmethod
    def of(index: ReferenceIndex, config: AuditConfig) -> SampleSearch:
        """As an audit computes: on the device of its model."""
        return SampleSearch(index, config.matches.batch_size, config.model.device)

    def nearest(self, pictures: Sequence[Pixels | None], k: int) -> list[list[Neighbour] | Status]:
        """The k nearest training pictures of each picture, best first, or why there are none."""
        found: list[list[Neighbour] | Status] = [Status.UNREADABLE_IMAGE] * len(pictures)
        images = {i: image for i, image in enumerate(pictures) if image is not None}
        if not images:
            return found
        vectors = self._describer.describe(list(images.values()))
        usable = np.isfinite(vectors).all(axis=1)
        rows = np.array(list(images))
        for row in rows[~usable]:
            found[row] = Status.NO_DESCRIPTOR
        if usable.any():
            similarities, references = search(self.index.vectors, vectors[usable], k, self._engine)
            for row, values, names in zip(rows[usable], similarities, references, strict=True):
                found[row] = [
                    Neighbour(self.index.reference_id(int(name)), float(value), int(name))
                    for value, name in zip(values, names, strict=True)
                ]
        # The vectors are mapped from a file: written to meanwhile, they would have been another index's.
        self.index.require_unchanged()
        return found


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
