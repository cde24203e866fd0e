"""Stored samples to nearest training pictures: what the stages bands and match have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sharpaudit.embedders.base import open_embedder
from sharpaudit.errors import Status
from sharpaudit.images import UnreadableImage, decode
from sharpaudit.matches.index import ReferenceIndex
from sharpaudit.matches.search.flat import search
from sharpaudit.tables.pictures import read_image


@dataclass(frozen=True)
class Neighbour:
    """A training picture and its similarity to a sample, a cosine in [-1, 1]."""

    reference_id: str
    similarity: float


class SampleSearch:
    """Holds the index and its embedder. root: what the paths of pictures are relative to. batch_size: of pictures."""

    def __init__(self, root: Path, index: ReferenceIndex, batch_size: int) -> None:
        self._root, self.index = root, index
        self._describer = open_embedder(index.embedder, batch_size)

    def nearest(self, paths: Sequence[str], k: int) -> list[list[Neighbour] | Status]:
        """The k nearest training pictures of each stored picture, best first, or why there are none.

        Raises IntegrityError for a picture that is missing or was changed.
        """
        found: list[list[Neighbour] | Status] = [Status.UNREADABLE_IMAGE] * len(paths)
        images = {i: image for i, path in enumerate(paths) if (image := self._load(path)) is not None}
        if not images:
            return found
        vectors = self._describer.describe(list(images.values()))
        usable = np.isfinite(vectors).all(axis=1)
        rows = np.array(list(images))
        for row in rows[~usable]:
            found[row] = Status.NO_DESCRIPTOR
        if usable.any():
            similarities, references = search(self.index.vectors, vectors[usable], k, torch.get_num_threads())
            for row, values, names in zip(rows[usable], similarities, references, strict=True):
                found[row] = [
                    Neighbour(self.index.reference_ids[name], float(value))
                    for value, name in zip(values, names, strict=True)
                ]
        # The vectors are mapped from a file: written to meanwhile, they would have been another index's.
        self.index.require_unchanged()
        return found

    def _load(self, path: str) -> np.ndarray | None:
        try:
            return decode(read_image(self._root, path))
        except UnreadableImage:
            return None
