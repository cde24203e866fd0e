"""Random pieces of text in the prompt (Somepalli et al., NeurIPS 2023): a prompt that is not the memorised one.

Numbers below a million, words of the prompt repeated, or letters at random, which a tokenizer takes for rare tokens;
each at a random place between two words.
"""

from __future__ import annotations

import string
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from sharpaudit.mitigation.base import Case, Method, Mitigation, Steered, plain
from sharpaudit.seeds import generator

Piece = Literal["number", "repeat", "token"]
PIECES: dict[str, Piece] = {"numbers": "number", "repeats": "repeat", "tokens": "token"}


@dataclass(frozen=True)
class Insertion(Method):
    """piece: what is put in. pieces: how many."""

    piece: Piece = "number"
    pieces: int = 4

    source = "Somepalli et al., NeurIPS 2023"

    def steer(self, case: Case) -> Steered:
        """Another prompt for each picture."""
        return plain(replace(case, prompts=self.changed(case)))

    def changed(self, case: Case) -> list[str]:
        """The prompts that are drawn instead, by prompt and name, whatever else is drawn."""
        return [
            self._one(prompt, generator(case.seed, "insertion", self.piece, prompt, name))
            for prompt, name in zip(case.prompts, case.names, strict=True)
        ]

    def _one(self, prompt: str, draw: np.random.Generator) -> str:
        words = prompt.split()
        own = list(words)
        for _ in range(self.pieces):
            words.insert(int(draw.integers(len(words) + 1)), self._piece(own, draw))
        return " ".join(words)

    def _piece(self, words: list[str], draw: np.random.Generator) -> str:
        if self.piece == "number" or (self.piece == "repeat" and not words):
            return str(draw.integers(1_000_000))
        if self.piece == "repeat":
            return words[int(draw.integers(len(words)))]
        return "".join(draw.choice(list(string.ascii_lowercase), size=int(draw.integers(3, 9))))


NUMBERS, REPEATS, TOKENS = (
    Mitigation(name, Insertion(piece), "pieces", (1, 2, 4, 8)) for name, piece in PIECES.items()
)
