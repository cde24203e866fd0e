"""The evaluations that rival screens are read off: differences at two places, text embeddings, reference latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pipelines.bench.detection import audit_of
from pipelines.research.lab.build import latents_of, read_recipe
from pipelines.research.lab.trainingset import picture, plan
from pipelines.research.projected import ALONG, ALONG_OUTSIDE
from pipelines.stages.fit import screen_config
from sharpaudit.denoisers.base import Denoiser
from sharpaudit.denoisers.load import load_denoiser
from sharpaudit.errors import Status, UserError
from sharpaudit.lab.detectors import Truth, read_truth
from sharpaudit.scores.base import FIRST, PROBE
from sharpaudit.scores.screen import ScreenConfig, differences, screen, unconditional_predictions
from sharpaudit.scores.subspace import fit_subspace

Floats = npt.NDArray[np.float64]
BATCH = 64
PROJECTED = (ALONG, ALONG_OUTSIDE)


@dataclass(frozen=True)
class Data:
    """delta_eps of a split and of the fit prompts, S seeds, N and F prompts, D latent elements.

    moved: of audited prompts. beside: at x + h v, with v common to all. references: latents of R training pictures
    less their mean. text: the text encoder's output, flattened. sharpness: along each audited prompt's residual, by
    metric of PROJECTED.
    """

    truth: Sequence[Truth]
    fit: Sequence[Truth]
    moved_SND: Floats
    fit_SFD: Floats
    beside_SND: Floats
    fit_beside_SFD: Floats
    text_NE: Floats
    text_FE: Floats
    references_RD: Floats
    sharpness_SN: dict[str, Floats]

    @cached_property
    def texts(self) -> tuple[Floats, Floats]:
        """Text embeddings of fit and audited prompts, centred and scaled by those of the fit prompts."""
        centre, spread = self.text_FE.mean(0), self.text_FE.std() + 1e-12
        return (self.text_FE - centre) / spread, (self.text_NE - centre) / spread


def gather(folder: Path, split: str, n_seeds: int) -> Data:
    """Evaluate a split and the fit prompts of a lab at several seeds: two evaluations a prompt and seed."""
    every = read_truth(folder)
    truth, fit = [row for row in every if row.split == split], [row for row in every if row.split == "fit"]
    config = audit_of(folder, split, 0, every=False)
    denoiser, settings = load_denoiser(config.model), screen_config(config)
    found: dict[str, list[Floats]] = {"moved": [], "beside": [], "fit": [], "fit_beside": []}
    sharpness: dict[str, list[Floats]] = {metric.name: [] for metric in PROJECTED}
    for seed in range(n_seeds):
        own = replace(settings, seed=seed, batch_size=BATCH)
        for names, rows in ((("moved", "beside"), truth), (("fit", "fit_beside"), fit)):
            for name, values in zip(names, _at_both(denoiser, rows, own), strict=True):
                found[name].append(values)
        for name, values in _along(denoiser, truth, fit, found["fit"][-1], own).items():
            sharpness[name].append(values)
    recipe = read_recipe(folder)[0]
    kept = [row for row in plan(recipe).rows if row.kind != "template" or row.picture_id.endswith("000")]
    pictures_NHWC = np.stack([picture(recipe.seed, row) for row in kept])
    references = latents_of(folder / "model", pictures_NHWC).flatten(1).double().numpy()
    stacked = {name: np.stack(values) for name, values in found.items()}
    return Data(
        truth,
        fit,
        stacked["moved"],
        stacked["fit"],
        stacked["beside"],
        stacked["fit_beside"],
        _text(denoiser, truth),
        _text(denoiser, fit),
        references - references.mean(0),
        {name: np.stack(values) for name, values in sharpness.items()},
    )


def _along(
    denoiser: Denoiser, truth: Sequence[Truth], fit: Sequence[Truth], fit_FD: Floats, config: ScreenConfig
) -> dict[str, Floats]:
    """The metrics of PROJECTED of each prompt, (N,), on directions that the fit prompts' differences teach."""
    subspace = fit_subspace(fit_FD.astype(np.float32), "auto", [row.family for row in fit])
    known = unconditional_predictions(denoiser, config)
    rows = screen(denoiser, [row.prompt for row in truth], known, {config.first_seed: subspace}, config, PROJECTED)
    kept = [row for row in rows if not isinstance(row, Status)]
    if len(kept) < len(rows):
        raise UserError(f"{len(rows) - len(kept)} prompts could not be evaluated; a comparison needs them all")
    return {metric.name: np.array([row.mean(metric.name) for row in kept]) for metric in PROJECTED}


def _at_both(denoiser: Denoiser, rows: Sequence[Truth], config: ScreenConfig) -> tuple[Floats, Floats]:
    """delta_eps at x and at x + h v, with shape (N, D) each."""
    known = unconditional_predictions(denoiser, config, (FIRST, PROBE))
    prompts = [row.prompt for row in rows]
    made = []
    for place in (FIRST, PROBE):
        found = [row for row in differences(denoiser, prompts, known, config, place) if not isinstance(row, Status)]
        if len(found) < len(prompts):
            raise UserError(f"{len(prompts) - len(found)} prompts could not be evaluated; a comparison needs them all")
        made.append(np.stack(found).astype(np.float64))
    return made[0], made[1]


def _text(denoiser: Denoiser, rows: Sequence[Truth]) -> Floats:
    with torch.no_grad():
        parts = [
            denoiser.encode([row.prompt for row in rows[i : i + BATCH]]).tensors["prompt"].flatten(1).cpu()
            for i in range(0, len(rows), BATCH)
        ]
    flat_NE: Floats = torch.cat(parts).double().numpy()
    return flat_NE
