"""Another embedding of the prompt, at which it moves the prediction little (Wen et al., ICLR 2024, section 4.2).

The text encoder's output is moved by AdamW until the noise gap |De| where the screen looks is below a target; the mark
that begins a prompt stays as it is, padding moves as words do. The released code takes the norm of all pictures of a
batch together; here every picture has its own, so that none depends on what it is drawn beside. What the model predicts
without a prompt does not change meanwhile, and is evaluated once.

Shapes: B pictures, L tokens, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from sharpaudit.denoisers.base import Conditioning, Denoiser
from sharpaudit.mitigation.base import Aimed, Case, Difference, Mitigation, Steered, norms, plain
from sharpaudit.mitigation.descent import descend

TEXT = "prompt"
"""The tensor of a conditioning that holds the text encoder's output."""


@dataclass(frozen=True)
class Embedding(Aimed):
    """target: of |De| of one picture; None for none: all steps are taken."""

    lr: float = 0.05
    most_steps: int = 10

    source = "Wen et al., ICLR 2024"

    def refusal(self, denoiser: Denoiser) -> str | None:
        """Of a model whose prompts are no embeddings of tokens."""
        with torch.no_grad():
            held_BLE = denoiser.unconditional(1).tensors.get(TEXT)
        if held_BLE is not None and held_BLE.dim() == 3:
            return None
        return "mitigation by embedding: this model's prompts are no embeddings of tokens; take another"

    def steer(self, case: Case) -> Steered:
        """Another conditioning."""
        steered = plain(case)
        held_BLE = steered.conditioning.tensors[TEXT]
        gap = _Gap(case, steered)
        free_BLE = held_BLE[:, 1:].detach().clone().float().requires_grad_(True)
        found = descend(
            free_BLE,
            torch.optim.AdamW([free_BLE], lr=self.lr),
            lambda rows: gap.of(_with(steered.conditioning.select(rows), held_BLE[rows], free_BLE[rows]), rows),
            1,
            target=self.aim,
            most_steps=self.most_steps,
        )
        return replace(
            steered,
            conditioning=_with(steered.conditioning, held_BLE, found.best),
            # And one without the prompt.
            evaluations=[1 + spent for spent in found.evaluations],
            reached=None if self.aim is None else found.reached,
            told={"before": found.first, "after": found.values},
        )

    def values(self, case: Case) -> list[float]:
        """The noise gap of each row as it is."""
        steered = plain(case)
        with torch.no_grad():
            every = range(len(case.prompts))
            gap_B: list[float] = _Gap(case, steered).of(steered.conditioning, every).tolist()
        return gap_B


class _Gap:
    """|De| of rows of a case as a function of their conditioning."""

    def __init__(self, case: Case, steered: Steered) -> None:
        difference = Difference(case, steered.conditioning, steered.unconditional)
        self._denoiser, self._t, self._level = case.denoiser, difference.t, difference.level
        self._noisy = difference.noisy(case.x_T.to(case.denoiser.device))
        with torch.no_grad():
            self._without = case.denoiser.predict(self._noisy, self._t, steered.unconditional).x0_hat

    def of(self, conditioning: Conditioning, rows: Sequence[int]) -> torch.Tensor:
        """(R,): one evaluation a row."""
        some = list(rows)
        found = self._denoiser.predict(self._noisy[some], self._t, conditioning).x0_hat
        return norms(found - self._without[some]) * (self._level.a / self._level.sigma)


def _with(conditioning: Conditioning, held_BLE: torch.Tensor, free_BLE: torch.Tensor) -> Conditioning:
    """The conditioning with other tokens behind the first."""
    return Conditioning(conditioning.tensors | {TEXT: torch.cat([held_BLE[:, :1], free_BLE.to(held_BLE)], dim=1)})


EMBEDDING = Mitigation("embedding", Embedding(most_steps=20, of_target=0.5), "of_target", (1.0, 0.75, 0.5, 0.25))
