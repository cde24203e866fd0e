"""Which prompts of the lab are memorised: decided by what the model generates, never by what was planted.

Every planted prompt, and of the others those that any metric ranks among its top 5% and 300 more, get 8 generations.
Pictures are compared by normalised pixels: every channel loses its mean, and the whole is scaled to length 1, so that
guidance, which saturates colours, hides no copy. A generation is a *copy* of a planted picture if of all training
pictures that one is the nearest, and its distance is below MAX_RATIO of the mean distance to the 50 nearest pictures
that are no plant (Carlini et al., USENIX Security 2023, section 5.1). A template plant is compared outside the region
in which its copies differ. Then

    memorised   at least 4 of 8 generations copy the prompt's own plant
    partly      1 to 3 do
    neighbour   never planted, or its own plant not copied, and at least one generation copies another plant
    harmless    the rest

A second instrument (regions.py), which no audit uses, and a second guidance tell how far labels depend on either: they
are counted beside (agreement.py), and decide nothing.

Shapes: N pictures or captions, M metrics, G generations, P plants, H W C picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
import numpy.typing as npt
import torch

from pipelines.research.lab.drawing import card_box
from pipelines.research.lab.regions import LIKE, likeness
from pipelines.research.lab.trainingset import Plan, Prompt
from sharpaudit.denoisers.base import Denoiser
from sharpaudit.errors import Status, UserError
from sharpaudit.plugs import METRICS
from sharpaudit.samples.generate import Generator
from sharpaudit.scores.base import ATTENTION
from sharpaudit.scores.plan import places
from sharpaudit.scores.residual_gap import RESIDUAL_GAP, residual_gap
from sharpaudit.scores.screen import ScreenConfig, differences, screen, unconditional_predictions
from sharpaudit.scores.sharpness import SHARPNESS_JVP
from sharpaudit.scores.subspace import fit_subspace
from sharpaudit.seeds import generator, rank_hash
from sharpaudit.statistics.intervals import upper_bound

N_GENERATIONS = 8
MEMORISED = 4
MAX_RATIO = 0.7
"""Above the ratios of the autoencoder's own reconstructions of the plants, below those of fresh pictures of the same
captions: a line that was drawn before any generation was judged by it."""
NEAREST = 50
TOP_SHARE = 0.05
N_OTHERS = 300
STEPS, GUIDANCE, BATCH = 25, 5.0, 64
UNGUIDED = 1.0
"""The other guidance: none."""
STEP = 1.0
"""Of finite differences, whatever an audit's default becomes: which prompts are generated hangs on it."""
RANKING = tuple(metric for metric in METRICS.of(METRICS.ours()) if metric not in (RESIDUAL_GAP, SHARPNESS_JVP))
"""Metrics by which never-planted prompts are ranked, beside the residual gap; the exact path of sharpness ranks as the
other does."""
COMPONENTS: tuple[int | str, ...] = (20, "auto")
"""Of the residual gap."""


@dataclass(frozen=True)
class Judged:
    """A prompt with what its generations showed. own, other: generations that copy its own or another plant."""

    prompt: Prompt
    n_generations: int
    own: int
    other: int

    @property
    def copied_share(self) -> float | None:
        """Share of generations that copy any plant; None where none were made."""
        return (self.own + self.other) / self.n_generations if self.n_generations else None

    @property
    def label(self) -> str:
        """memorised, partly, neighbour or harmless."""
        if self.own:
            return "memorised" if 2 * self.own >= self.n_generations else "partly"
        return "neighbour" if self.other else "harmless"

    @property
    def decided_by(self) -> str:
        """Whether generations decided, or only the ranks of the screen."""
        return "generations" if self.n_generations else "screen"


class Plants:
    """The planted pictures and the other training pictures, ready to measure distances to generations."""

    def __init__(self, drawn: Plan, pictures_NHWC: npt.NDArray[np.uint8]) -> None:
        self.prompts = [prompt for prompt in drawn.prompts if prompt.planted]
        rows_of = {row.caption: i for i, row in reversed(list(enumerate(drawn.rows))) if row.kind != "other"}
        self.rows = [rows_of[prompt.caption] for prompt in self.prompts]
        """The training row of each plant; the first copy of a template."""
        self.pictures_PHWC = pictures_NHWC[self.rows]
        self.training_NHWC = pictures_NHWC
        self._others_N = [i for i, row in enumerate(drawn.rows) if row.kind not in ("exact", "template")]

    @cached_property
    def _others(self) -> npt.NDArray[np.float32]:
        return normalised(self.training_NHWC[self._others_N])

    @cached_property
    def masks(self) -> npt.NDArray[np.bool_]:
        """Where a plant is compared, (P, H, W): everywhere but in the varied region of a template."""
        masks = np.ones((len(self.prompts), *self.pictures_PHWC.shape[1:3]), dtype=bool)
        for mask, prompt in zip(masks, self.prompts, strict=True):
            if prompt.kind == "template":
                left, top, right, bottom = card_box(prompt.family)
                mask[top:bottom, left:right] = False
        return masks

    def ratios(self, generations_GHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        """Distance to each plant over the mean distance to the 50 nearest others, with shape (G, P).

        Infinite for a plant that is not the nearest of all training pictures.
        """
        alike_GN = normalised(generations_GHWC) @ self._others.T
        nearest_GK = _distances(np.partition(alike_GN, -NEAREST, axis=1)[:, -NEAREST:])
        planted_GP = self.distances(generations_GHWC)
        ratios_GP: npt.NDArray[np.float64] = planted_GP / nearest_GK.mean(1, keepdims=True)
        first_G = np.minimum(planted_GP.min(1), nearest_GK.min(1))
        ratios_GP[planted_GP > first_G[:, None]] = np.inf
        return ratios_GP

    def distances(self, generations_GHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        """Distance to each plant of the pixels where it is compared, from 0 to 2, with shape (G, P)."""
        distances_GP = np.empty((len(generations_GHWC), len(self.prompts)))
        masks_MHW, which_P = np.unique(self.masks, axis=0, return_inverse=True)
        for m, mask_HW in enumerate(masks_MHW):
            alike_P = which_P == m
            plants_PD = normalised(self.pictures_PHWC[alike_P][:, mask_HW])
            distances_GP[:, alike_P] = _distances(normalised(generations_GHWC[:, mask_HW]) @ plants_PD.T)
        return distances_GP


def normalised(pictures: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Pictures (N, ..., C) as rows (N, D) of length 1, each channel with mean 0; of one colour all 0."""
    flat_NPC = pictures.reshape(len(pictures), -1, pictures.shape[-1]).astype(np.float32)
    flat_NPC -= flat_NPC.mean(axis=1, keepdims=True)
    rows_ND: npt.NDArray[np.float32] = flat_NPC.reshape(len(pictures), -1)
    rows_ND /= np.maximum(np.linalg.norm(rows_ND, axis=1, keepdims=True), 1e-6)
    return rows_ND


def _distances(cosines: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Of rows of length 1 with these inner products."""
    distances: npt.NDArray[np.float64] = np.sqrt(np.maximum(2 - 2 * cosines.astype(np.float64), 0))
    return distances


def by_pixels(plants: Plants, generations_GHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Which plants each generation copies by normalised pixels, with shape (G, P)."""
    copied_GP: npt.NDArray[np.bool_] = plants.ratios(generations_GHWC) < MAX_RATIO
    return copied_GP


def by_regions(plants: Plants, generations_GHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Which plants each generation copies region by region, (G, P): the likest one, if it is like enough."""
    likeness_GP = likeness(generations_GHWC, plants.pictures_PHWC, plants.masks)
    copied_GP: npt.NDArray[np.bool_] = (likeness_GP >= LIKE) & (likeness_GP == likeness_GP.max(1, keepdims=True))
    return copied_GP


Instrument = Callable[[Plants, npt.NDArray[np.uint8]], npt.NDArray[np.bool_]]
INSTRUMENTS: dict[str, Instrument] = {"pixels": by_pixels, "regions": by_regions}
"""The first decides labels."""


def to_generate(denoiser: Denoiser, prompts: Sequence[Prompt], seed: int) -> dict[str, str]:
    """Why each caption that gets generations does: planted, ranked (top 5% by any metric at one seed) or drawn."""
    others = [prompt for prompt in prompts if not prompt.planted]
    values = _screened(denoiser, others, seed)
    top: set[int] = set()
    for column in values.T:
        top |= set(np.argsort(-column)[: round(TOP_SHARE * len(others))].tolist())
    rest = sorted(set(range(len(others))) - top, key=lambda i: rank_hash(seed, "truth", others[i].caption))
    chosen = {prompt.caption: "planted" for prompt in prompts if prompt.planted}
    return chosen | {others[i].caption: "ranked" if i in top else "drawn" for i in sorted(top | set(rest[:N_OTHERS]))}


def _screened(denoiser: Denoiser, prompts: Sequence[Prompt], seed: int) -> npt.NDArray[np.float64]:
    """Every metric of every prompt, with shape (N, M).

    The residual gap stands there with each of COMPONENTS; each half is scored on a subspace fitted on the other.
    """
    config = ScreenConfig(1, seed, STEP, BATCH)
    captions, families = [prompt.caption for prompt in prompts], [prompt.family.name for prompt in prompts]
    metrics = [m for m in RANKING if denoiser.attention_layers or ATTENTION not in m.needs]
    known = unconditional_predictions(denoiser, config, places([*metrics, RESIDUAL_GAP]))
    found = differences(denoiser, captions, known, config)
    moved_ND = np.stack([row for row in found if not isinstance(row, Status)])
    gaps = np.empty((len(prompts), len(COMPONENTS)))
    for half, (i, components) in product((0, 1), enumerate(COMPONENTS)):
        subspace = fit_subspace(moved_ND[1 - half :: 2], components, families[1 - half :: 2])
        gaps[half::2, i] = residual_gap(torch.from_numpy(moved_ND[half::2]), subspace)
    rows = screen(denoiser, captions, known, {}, config, metrics)
    others = np.array([[v[0] for v in row.seed_values.values()] for row in rows if not isinstance(row, Status)])
    return np.concatenate([gaps, others], axis=1)


def generations(
    denoiser: Denoiser, prompts: Sequence[Prompt], seed: int, guidance: float
) -> Iterator[tuple[Sequence[Prompt], npt.NDArray[np.uint8]]]:
    """A few prompts at a time with 8 generations of each, (N, 8, H, W, 3), the same whatever else is generated.

    Raises UserError for one that is not finite or does not fit the memory.
    """
    per_call = BATCH // (2 * N_GENERATIONS)
    generator = Generator(denoiser, seed, STEPS, guidance, BATCH)
    for first in range(0, len(prompts), per_call):
        some = prompts[first : first + per_call]
        keys = [(prompt.family.name, i) for prompt in some for i in range(N_GENERATIONS)]
        captions = [prompt.caption for prompt in some for _ in range(N_GENERATIONS)]
        made = [picture for picture in generator.pictures(captions, keys) if not isinstance(picture, Status)]
        if len(made) < len(keys):
            raise UserError(f"{len(keys) - len(made)} generations failed; labels need all of them")
        yield some, np.stack(made).reshape(len(some), N_GENERATIONS, *made[0].shape)


def judge(
    plants: Plants, prompts: Sequence[Prompt], pictures_NGHWC: npt.NDArray[np.uint8], copies: Instrument = by_pixels
) -> list[Judged]:
    """Count the copies among each prompt's generations."""
    own_column = {prompt.caption: p for p, prompt in enumerate(plants.prompts)}
    judged = []
    for prompt, copied_GP in zip(prompts, copied(plants, pictures_NGHWC, copies), strict=True):
        column = own_column.get(prompt.caption)
        own_G = copied_GP[:, column] if column is not None else np.zeros(len(copied_GP), dtype=bool)
        other = int((copied_GP.any(1) & ~own_G).sum())
        judged.append(Judged(prompt, len(copied_GP), int(own_G.sum()), other))
    return judged


def copied(
    plants: Plants, pictures_NGHWC: npt.NDArray[np.uint8], copies: Instrument
) -> Iterator[npt.NDArray[np.bool_]]:
    """Which plants each generation copies, (G, P) for each prompt; many prompts are measured in one product."""
    G = pictures_NGHWC.shape[1]
    for first in range(0, len(pictures_NGHWC), BATCH):
        some_NGHWC = pictures_NGHWC[first : first + BATCH]
        found = copies(plants, some_NGHWC.reshape(-1, *some_NGHWC.shape[2:]))
        yield from found.reshape(len(some_NGHWC), G, -1)


def judged_all(prompts: Sequence[Prompt], generated: Sequence[Judged]) -> list[Judged]:
    """Every prompt in its order; those without generations are harmless by the screen."""
    known = {entry.prompt.caption: entry for entry in generated}
    return [known.get(prompt.caption, Judged(prompt, 0, 0, 0)) for prompt in prompts]


def bootstrap_share(shares: Sequence[float], replicates: int = 2000) -> tuple[float, float]:
    """95% interval of a mean copied share, resampling prompts.

    Where all prompts agree no replicate differs; then as many others may still differ as Clopper and Pearson allow for
    none seen.
    """
    values = np.asarray(shares)
    draws = generator("copied share").integers(len(values), size=(replicates, len(values)))
    low, high = np.quantile(values[draws].mean(1), [0.025, 0.975])
    unseen = upper_bound(0, len(values), 0.975) if low == high else 0.0
    return max(0.0, float(low - unseen)), min(1.0, float(high + unseen))
