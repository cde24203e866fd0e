"""An embedder: everything that turns a picture into a vector, under one name and digest.

The card is an embedder without its weights: indexes and configurations (`matches.profile`) are held against it, and
nothing is loaded for that. Opened, it gives vectors. Two vectors may be compared only if their cards agree in name,
version and digest; an index records all three. The similarity of two pictures is the inner product of their vectors, a
cosine in [-1, 1], and larger means more alike.

Shapes: N pictures or texts, D dimension, H W C a picture.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sharpaudit.devices import choose_device
from sharpaudit.embedders.weights import Shelf, Weights
from sharpaudit.errors import UserError, printable
from sharpaudit.images import Pixels
from sharpaudit.plugs import EMBEDDERS

NOWHERE = Shelf()
BATCH = 64
"""Pictures described at a time where nobody says."""
UNIT_TOLERANCE = 1e-3


class Describer(ABC):
    """An embedder that is open. A row depends on its own picture or text only, up to the rounding of a network."""

    @abstractmethod
    def describe(self, images: Sequence[Pixels]) -> npt.NDArray[np.float32]:
        """Unit rows, float32, shape (N, D); a NaN row where a picture has no usable descriptor.

        images: uint8, each of shape (H, W, 3), of any sizes and any number.
        """

    def describe_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """The same of texts, in the space of the pictures. ValueError where the card does not say `texts`."""
        raise ValueError("this embedder describes no texts")


@dataclass(frozen=True)
class Needs:
    """What must be there before an embedder is opened.

    packages: to import, beyond what sharpaudit installs. files: in words, what else and where it is looked for.
    memory_bytes: of the device, about, at the default batch.
    """

    packages: tuple[str, ...] = ()
    files: str = ""
    memory_bytes: int = 0


class Embedder(ABC):
    """The card. digest: covers every parameter that changes a vector, weights and preprocessing among them.

    licence: what to know of the weights' terms. texts: whether texts are described too. weights: which, once
    `with_weights` has found them; None for an embedder that has none.
    """

    name: str
    version: int
    dimension: int
    digest: str
    licence: str = ""
    texts: bool = False
    needs: Needs = Needs()
    weights: Weights | None = None

    def form(self, which: str) -> Embedder:
        """The card of one of several forms that go by one name: in a configuration "name:which". Raises UserError."""
        if which:
            raise UserError(f'embedder "{printable(self.name)}" comes in one form: leave out ":{printable(which)}"')
        return self

    def with_weights(self, shelf: Shelf) -> Embedder:
        """The card of the weights on the shelf; of an embedder without weights itself. Raises UserError."""
        return self

    @abstractmethod
    def open(self, device: torch.device, batch_size: int) -> Describer:
        """The describer, on `device`, taking so many pictures at a time. Raises UserError for what is not there."""


@dataclass(frozen=True)
class _Held(Describer):
    """A describer whose rows are what its card promises: an index of others would answer nothing."""

    card: Embedder
    inner: Describer

    def describe(self, images: Sequence[Pixels]) -> npt.NDArray[np.float32]:
        return _promised(self.card, self.inner.describe(images), len(images))

    def describe_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        if not self.card.texts:
            raise ValueError(f'embedder "{self.card.name}" describes no texts')
        return _promised(self.card, self.inner.describe_texts(texts), len(texts))


def embedder(name: str, shelf: Shelf = NOWHERE) -> Embedder:
    """The card of that name, of the weights on the shelf. Raises UserError for an unknown one, or without weights."""
    kind, _, which = name.partition(":")
    return EMBEDDERS[kind].form(which).with_weights(shelf)


def open_embedder(card: Embedder, batch_size: int = BATCH, device: str = "auto") -> Describer:
    """The describer, on a device as `model.device` names it. Raises UserError for a package that is not there."""
    missing = [package for package in card.needs.packages if find_spec(package) is None]
    if missing:
        raise UserError(
            f'embedder "{printable(card.name)}" needs the package {printable(missing[0])}, which is not installed here'
        )
    return _Held(card, card.open(choose_device(device), batch_size))


def notes(card: Embedder) -> list[str]:
    """What people should know of an embedder before it works for hours: terms, weights, memory; nothing, for most."""
    gib = f"takes about {card.needs.memory_bytes / 2**30:.1f} GiB of the device's memory"
    given = card.weights
    weights = f"weights {given.path}, SHA-256 {given.sha256}, vouched for by {given.vouched_by}" if given else ""
    told = [weights, card.licence, card.needs.files, gib if card.needs.memory_bytes else ""]
    return [f"embedder {printable(card.name)}: {printable(text)}" for text in told if text]


def _promised(card: Embedder, rows_ND: Any, n: int) -> npt.NDArray[np.float32]:
    what = f'embedder "{printable(card.name)}"'
    if not isinstance(rows_ND, np.ndarray) or rows_ND.dtype != np.float32 or rows_ND.shape != (n, card.dimension):
        found = f"{rows_ND.dtype} {rows_ND.shape}" if isinstance(rows_ND, np.ndarray) else type(rows_ND).__name__
        raise UserError(f"{what} gave {found}, where float32 {(n, card.dimension)} is expected")
    # A row that is not finite is that of a picture without a descriptor.
    lengths_N = np.linalg.norm(rows_ND.astype(np.float64), axis=1)
    odd = np.flatnonzero(np.isfinite(rows_ND).all(axis=1) & ~(np.abs(lengths_N - 1) <= UNIT_TOLERANCE))
    if len(odd):
        raise UserError(f"{what} gave a row of length {lengths_N[odd[0]]:g}; rows have length 1, or are NaN")
    return rows_ND
