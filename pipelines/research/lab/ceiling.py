"""What the noise gap of a perfect model would tell of a lab's plants: `python -m pipelines.research.lab.ceiling LAB`.

At the first step x is noise almost alone, so a perfect model predicts means: E[x0 | caption] with a caption, E[x0]
without one, and of a plant its picture. So |De| = (a / sigma) |E[x0 | c] - E[x0]| can be had from pictures that are
drawn, encoded and averaged, before anything is trained. How the lab's pictures are drawn was chosen by it: where a
caption fixes much of its picture, or pictures differ little from their mean, no training makes the noise gap tell
plants apart.

Shapes: N captions, K pictures of each, C H W latent.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pipelines.bench.lines import table
from pipelines.research.lab.build import latents_of, read_recipe
from pipelines.research.lab.captions import Family
from pipelines.research.lab.drawing import compose
from pipelines.research.lab.trainingset import plan
from sharpaudit.denoisers.base import SCREEN_STEPS
from sharpaudit.denoisers.schedule import leading_timesteps, scaled_linear_alphas_cumprod
from sharpaudit.seeds import generator
from sharpaudit.statistics.detection import auc, tpr_at_fpr

CAPTIONS, PICTURES, OTHERS = 200, 32, 2000
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Ceiling:
    """|De| of a perfect model, by whether captions name a colour."""

    colour: bool
    plants: Values
    harmless: Values


def first_ratio() -> float:
    """a / sigma at the first of 50 steps of Stable Diffusion's schedule."""
    from pipelines.research.lab.training import BETA_END, BETA_START, N_TIMESTEPS

    a2_T = scaled_linear_alphas_cumprod(BETA_START, BETA_END, N_TIMESTEPS)
    a2 = float(a2_T[int(leading_timesteps(N_TIMESTEPS, SCREEN_STEPS, 1)[0])])
    return float((a2 / (1 - a2)) ** 0.5)


def ceilings(model: Path, seed: int, plants: Sequence[Family], harmless: Sequence[Family]) -> Iterator[Ceiling]:
    """Of captions with a colour and without, pictures drawn anew. model: whose autoencoder encodes."""

    def latents(families: Sequence[Family], k: int, purpose: str) -> torch.Tensor:
        drawn = [compose(family, generator(seed, purpose, i, family.name)) for family in families for i in range(k)]
        found = latents_of(model, np.stack(drawn))
        return found.reshape(len(families), k, *found.shape[1:]).flatten(2).double()

    others = latents(harmless[:OTHERS], 1, "ceiling mean")
    centre_D = others.mean(dim=(0, 1))
    for colour in (True, False):
        some = [family for family in harmless if bool(family.colour) == colour][:CAPTIONS]
        each_NKD = latents(some, PICTURES, "ceiling")
        mean_ND = each_NKD.mean(dim=1)
        # The mean of K pictures is farther off than the mean of all by the scatter of the mean.
        scatter_N = (each_NKD - mean_ND[:, None]).square().sum(dim=(1, 2)) / (PICTURES - 1) / PICTURES
        squared_N = ((mean_ND - centre_D).square().sum(dim=1) - scatter_N).clamp(min=0)
        planted = latents([family for family in plants if bool(family.colour) == colour], 1, "ceiling plant")[:, 0]
        gaps = ((planted - centre_D).norm(dim=1), squared_N.sqrt())
        yield Ceiling(colour, *((first_ratio() * gap).numpy() for gap in gaps))


def markdown(found: Sequence[Ceiling]) -> str:
    """A table for people: quantiles of both, and what a threshold could tell."""
    rows = []
    for one in found:
        low, high = np.quantile(one.plants, 0.05), np.quantile(one.harmless, 0.99)
        told = [f"{auc(one.plants, one.harmless):.3f}", f"{tpr_at_fpr(0.01)(one.plants, one.harmless):.2f}"]
        rows.append(["yes" if one.colour else "no", f"{low:.2f}", f"{np.median(one.plants):.2f}", f"{high:.2f}", *told])
    head = ["caption names a colour", "plants, 5%", "plants, median", "harmless, 99%", "AUC", "TPR at 1% FPR"]
    return table(head, rows)


def main(folder: Path) -> None:
    """Print the table of a lab."""
    recipe, _ = read_recipe(folder)
    prompts = plan(recipe).prompts
    plants = [prompt.family for prompt in prompts if prompt.kind == "exact"]
    harmless = [prompt.family for prompt in prompts if not prompt.planted]
    sys.stdout.write(markdown(list(ceilings(folder / "model", recipe.seed, plants, harmless))))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
