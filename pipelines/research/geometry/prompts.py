"""Hessians of a lab's model at the noise and along the samples of its prompts.

Shapes: D latent elements, P probes, T steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.linalg import eigh

from sharpaudit.config import ModelConfig
from sharpaudit.denoisers.base import Denoiser
from sharpaudit.denoisers.load import load_denoiser
from sharpaudit.denoisers.sampling import DDIM, Guided, times
from sharpaudit.lab.detectors import Truth, read_truth
from sharpaudit.seeds import rank_hash, screen_latent
from sharpaudit.spectra.eigenvalues import every, random_signs
from sharpaudit.spectra.hessian import Curvature, Floats, at_step

STEPS, GUIDANCE, BATCH = 50, 5.0, 32
MOST = 30
"""Prompts of each group."""
GROUPS: dict[str, Callable[[Truth], bool]] = {
    "exact": lambda row: (row.kind, row.label) == ("exact", "memorised"),
    "template": lambda row: (row.kind, row.label) == ("template", "memorised"),
    "partly": lambda row: row.label == "partly",
    "not memorised": lambda row: row.label == "harmless" and row.never_planted,
}


@dataclass(frozen=True)
class Model:
    """A lab's model and its prompts by group, in a drawn order, of all splits."""

    denoiser: Denoiser
    prompts: dict[str, list[str]]

    @staticmethod
    def of(folder: Path) -> Model:
        """The lab in a folder."""
        denoiser = load_denoiser(ModelConfig(path=str(folder / "model"), dtype="float32", device="cpu"))
        rows = sorted(read_truth(folder), key=lambda row: rank_hash(0, "geometry", row.prompt))
        return Model(
            denoiser, {name: [row.prompt for row in rows if fits(row)][:MOST] for name, fits in GROUPS.items()}
        )

    def at(self, prompt: str, k: int = 0, step: int = 1) -> Curvature:
        """Before a step of a sample from the screen's noise k."""
        x_T = screen_latent(0, k, self.denoiser.latent_shape)
        return at_step(self.denoiser, prompt, x_T, step, STEPS, GUIDANCE, BATCH)


def spectra(model: Model, prompts: Sequence[str], k: int, step: int) -> Iterator[tuple[str, dict[str, Floats]]]:
    """Of each prompt before a step: all eigenvalues of each branch, and the generalised ones as "relative", rising.

    The generalised ones are lambda in -H_0 v = lambda (-H_c) v, none where -H_c is not positive definite. "asymmetry"
    is that of what the prompt adds, (1,). Whole matrices: where a latent has 1,024 elements they take less time than
    the ends of a spectrum by products.
    """
    known: Floats | None = None
    for prompt in prompts:
        place = model.at(prompt, k, step)
        if known is None or step > 1:
            known = place.jacobian(place.unconditional)  # at the first step x is the same for all
        found = place.matrices(known)
        given, empty = -found["conditional"][0], -found["unconditional"][0]
        definite = np.linalg.eigvalsh(given)[0] > 0
        beside = {
            "relative": eigh(empty, given, eigvals_only=True) if definite else np.empty(0),
            "asymmetry": np.array([found["difference"][1]]),
        }
        yield prompt, {branch: every(matrix) for branch, (matrix, _) in found.items()} | beside


def along(model: Model, prompt: str, k: int, probes: int) -> Iterator[dict[str, float]]:
    """At each step of a sample: squares of the conditional branch and the traces that stand for them.

    Traces by Hutchinson's estimate from random signs, with its standard error; v^T H^3 v is (H v)^T H (H v). All four
    are of one point, not means over x, which the identities are of.
    """
    walk = _walk(model.denoiser, prompt, k)
    for number, place, score_D in walk:

        def product(v_KD: Floats, place: Curvature = place) -> Floats:
            return place.product("conditional", v_KD)

        signs_PD = random_signs(number, probes, place.size)
        once_PD = product(signs_PD)
        estimates = {"-tr H": signs_PD * once_PD, "-tr H^3": once_PD * product(once_PD)}
        row = {"step": number + 1, "|s|^2": float(score_D @ score_D)}
        row["|Hs|^2"] = float(np.square(product(score_D[None])).sum())
        for name, each_PD in estimates.items():
            each_P = -each_PD.sum(axis=1)
            row |= {name: float(each_P.mean()), f"{name} error": float(each_P.std(ddof=1) / probes**0.5)}
        yield row


def _walk(denoiser: Denoiser, prompt: str, k: int) -> Iterator[tuple[int, Curvature, Floats]]:
    """(number, place, conditional score) of every step of a sample."""
    with torch.no_grad():
        guided = Guided(denoiser, denoiser.encode([prompt]), denoiser.unconditional(), GUIDANCE)
        x_T = screen_latent(0, k, denoiser.latent_shape)[None].to(denoiser.device)
        steps = list(DDIM.steps(guided, x_T, times(denoiser, STEPS)))
    for step in steps:
        place = Curvature(denoiser, step.x[0], step.t, guided.conditioning, guided.unconditional, BATCH)
        score = (step.level.a * step.x0_conditional - step.x) / step.level.sigma**2
        yield step.number, place, score[0].flatten().double().cpu().numpy()
