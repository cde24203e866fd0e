"""The analytic model: a Gaussian mixture in latent space, with exact score and Hessian.

Everything has a closed form, so it is the oracle of the numerics, and an audit of it takes seconds. With
diagonal covariances V_k, noised to x = a x0 + sigma eps, component k is N(a m_k, C_k), C_k = a^2 V_k + sigma^2 I, and

    r_k(x)   = w_k N(x; a m_k, C_k) / sum over j                       responsibilities
    x0_hat   = sum_k r_k (m_k + a V_k C_k^-1 (x - a m_k))               posterior mean
    score    = sum_k r_k s_k,  s_k = -C_k^-1 (x - a m_k)
    Hessian  = sum_k r_k (s_k s_k^T - C_k^-1) - score score^T

What a prompt means: an ordinary prompt c is a broad N(mu_c, s^2 I). mu_c moves in a few smooth directions, what
captions in general can change, plus a little detail of its own. A planted prompt is with probability `share` a
near-Dirac at its picture. The empty prompt is everything at once. So captions move the first step's
prediction a long way along these R directions, and memorised ones leave them.

A row's result has the same bits in every batch and at every thread count: all operations are elementwise in
float64, sums run in a fixed order, and padded components add exact zeros.

Shapes: B prompts, K components, D = C*H*W latent elements, R smooth directions.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sharpaudit.denoisers.base import SCREEN_STEPS, AttentionRequest, Conditioning, NoiseLevel, Prediction, Tokens
from sharpaudit.denoisers.decoding import resized
from sharpaudit.denoisers.schedule import leading_timesteps, scaled_linear_alphas_cumprod
from sharpaudit.errors import UserError, printable
from sharpaudit.seeds import generator
from sharpaudit.tables.liveness import answered

MAX_WORDS = 77
UPSAMPLING = 4
"""Pixels per latent element in a decoded picture, along each side."""

# At most 3 x 64 x 64 elements: torch splits the sum over a longer row among threads, and its last bits would
# then depend on the batch.
Side = Annotated[int, Field(ge=1, le=64)]
Size = Annotated[float, Field(gt=0, le=100)]


class Planted(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    prompt: str = Field(min_length=1)
    share: float = Field(gt=0, le=1)
    """Probability that the prompt means its planted picture."""


class GaussianSpec(BaseModel):
    """model.json: which prompts are planted, and the sizes of everything. Latents live roughly in [-1, 1]."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    kind: Literal["gaussian"]
    version: Literal[1] = 1
    seed: int = 0
    latent_shape: tuple[Literal[3], Side, Side] = (3, 8, 8)
    spread: Size = 0.3
    """Standard deviation of a prompt's move along each smooth direction, per element."""
    detail: float = Field(0.04, ge=0, le=100)
    """Standard deviation of a prompt's own detail, per element."""
    noise: Size = 0.12
    """Standard deviation s of the pictures of one ordinary prompt, per element."""
    sharpness: Size = 0.02
    """Standard deviation of a planted picture's peak, per element."""
    planted_weight: float = Field(0.1, ge=1e-6, lt=1)
    """Weight of all planted pictures together in the unconditional distribution."""
    planted: tuple[Planted, ...] = ()

    @model_validator(mode="after")
    def _told_apart(self) -> GaussianSpec:
        seen: set[str] = set()
        for entry in self.planted:
            if visible(entry.prompt) in seen:
                raise ValueError(
                    f"planted: {printable(entry.prompt)!r} stands twice (the model sees {MAX_WORDS} words); "
                    "give each picture a prompt of its own"
                )
            seen.add(visible(entry.prompt))
        return self


class Mixture:
    """Noised mixture at one level. log_weights (B, K), means and variances (B, K, D), all float64.

    Components that have no weight for any row are left out.
    """

    def __init__(self, log_weights: torch.Tensor, means: torch.Tensor, variances: torch.Tensor) -> None:
        used_K = torch.isfinite(log_weights).any(dim=0)
        self.log_weights, self.means, self.variances = log_weights[:, used_K], means[:, used_K], variances[:, used_K]

    def responsibilities(self, x_BD: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
        """r_k for each k, with shape (B, K)."""
        variance = level.a**2 * self.variances + level.sigma**2
        difference = x_BD[:, None] - level.a * self.means
        logs_BK = self.log_weights - 0.5 * _sum(difference**2 / variance + torch.log(variance))
        parts_BK = torch.exp(logs_BK - logs_BK.amax(dim=1, keepdim=True))
        return parts_BK / _sum(parts_BK)[:, None]

    def x0_hat(self, x_BD: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
        """E[x0 | x], with shape (B, D)."""
        pull = level.a * self.variances / (level.a**2 * self.variances + level.sigma**2)
        each_BKD = self.means + pull * (x_BD[:, None] - level.a * self.means)
        weighted_BKD = self.responsibilities(x_BD, level)[:, :, None] * each_BKD
        return _sum(weighted_BKD, dim=1)

    def score(self, x_BD: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
        """grad log p(x), with shape (B, D), from the definition and not from x0_hat."""
        return (self.responsibilities(x_BD, level)[:, :, None] * self._scores(x_BD, level)).sum(dim=1)

    def hessian(self, x_BD: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
        """Hessian of log p(x), with shape (B, D, D)."""
        mean_BD = self.score(x_BD, level)
        found = -mean_BD[:, :, None] * mean_BD[:, None, :]
        r_BK, s_BKD = self.responsibilities(x_BD, level), self._scores(x_BD, level)
        for k in range(self.means.shape[1]):
            variance = level.a**2 * self.variances[:, k] + level.sigma**2
            outer = s_BKD[:, k, :, None] * s_BKD[:, k, None, :]
            found = found + r_BK[:, k, None, None] * (outer - torch.diag_embed(1 / variance))
        return found

    def _scores(self, x_BD: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
        """Of each component, with shape (B, K, D)."""
        return -(x_BD[:, None] - level.a * self.means) / (level.a**2 * self.variances + level.sigma**2)


class GaussianTokenizer:
    """Words between blanks, at most 77 of them."""

    digest = "gaussian-words-77-v1"

    def tokens(self, prompts: Sequence[str]) -> list[Tokens]:
        """Word counts; the model sees the first 77 words."""
        return [self._one(prompt) for prompt in prompts]

    def _one(self, prompt: str) -> Tokens:
        count, seen = len(prompt.split()), visible(prompt)
        name = hashlib.sha256(seen.encode()).hexdigest()[:32]
        return Tokens(count, count > MAX_WORDS, name)


def visible(prompt: str) -> str:
    """What the model sees of a prompt: its first 77 words, or all of it, exactly, when it is not longer."""
    words = prompt.split()
    return " ".join(words[:MAX_WORDS]) if len(words) > MAX_WORDS else prompt


class GaussianDenoiser:
    """The mixture behind the contract of base.py."""

    def __init__(self, spec: GaussianSpec) -> None:
        self._spec = spec
        self.latent_shape: tuple[int, ...] = spec.latent_shape
        self.device = torch.device("cpu")
        self.attention_layers: tuple[str, ...] = ()
        self._alphas = scaled_linear_alphas_cumprod()
        self._directions_RD = _smooth_directions(spec.latent_shape)
        self._pictures = [_blocks(spec, i).flatten() for i in range(len(spec.planted))]
        self._places = {visible(entry.prompt): i for i, entry in enumerate(spec.planted)}

    @staticmethod
    def from_file(path: Path) -> GaussianDenoiser:
        """The model of a model.json. Raises UserError."""
        return GaussianDenoiser(read_spec(path))

    @property
    def digest(self) -> str:
        """SHA-256 of the specification."""
        return digest_of_spec(self._spec)

    def planted_latent(self, i: int) -> torch.Tensor:
        """The i-th planted picture, float32, with shape (C, H, W)."""
        return self._pictures[i].reshape(self.latent_shape).to(torch.float32)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """Mixture parameters of each prompt, padded to one width for all."""
        rows = [self._mixture(visible(prompt)) for prompt in prompts]
        return Conditioning(
            {name: torch.stack([row[name] for row in rows]) for name in ("log_weights", "means", "variances")}
        )

    def unconditional(self, n: int = 1) -> Conditioning:
        """The empty prompt: everything at once."""
        return self.encode([""] * n)

    def mixture(self, prompts: Sequence[str]) -> Mixture:
        """The prompts' distributions of x0, as an oracle for tests."""
        return Mixture(**self.encode(prompts).tensors)

    def predict(
        self, x_BCHW: torch.Tensor, t: float, conditioning: Conditioning, *, record: AttentionRequest | None = None
    ) -> Prediction:
        """The exact posterior mean, in float64 where x is. Raises UserError where attention is to be recorded: there is
        none."""
        if record is not None:
            record.chosen(self.attention_layers)
        x_BD = x_BCHW.to(torch.float64).flatten(1)
        level, parts = self.level(t), _by_width(conditioning)
        found = [Mixture(**part.tensors).x0_hat(x_BD[rows], level) for rows, part in parts]
        x0_BD = torch.cat(found)[torch.cat([rows for rows, _ in parts]).argsort()]
        answered()
        return Prediction(x0_BD.reshape(x_BCHW.shape).to(x_BCHW.dtype))

    def decode(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        """Latents in [-1, 1] as colours, each element a square of 4 x 4 pixels."""
        colours = ((latents_BCHW + 1) / 2).clamp(0, 1)
        return colours.repeat_interleave(UPSAMPLING, dim=2).repeat_interleave(UPSAMPLING, dim=3)

    def latents_of(self, pictures_BCHW: torch.Tensor) -> torch.Tensor:
        """What `decode` shows as these colours."""
        height, width = (UPSAMPLING * side for side in self.latent_shape[1:])
        return 2 * resized(pictures_BCHW.float(), height, width)[:, :, ::UPSAMPLING, ::UPSAMPLING] - 1

    def level(self, t: float) -> NoiseLevel:
        """The level of Stable Diffusion's schedule, t from 0 to 999."""
        if t not in range(len(self._alphas)):
            raise ValueError(f"timestep {t} is not in 0..{len(self._alphas) - 1}")
        alpha = float(self._alphas[int(t)])
        return NoiseLevel(math.sqrt(alpha), math.sqrt(1 - alpha))

    def timesteps(self, n_steps: int) -> list[int]:
        """Leading spacing, offset 1. Raises UserError where offset 1 would leave the range."""
        n_train = len(self._alphas)
        if not 1 <= n_steps < n_train:
            raise UserError(f"samples.steps = {n_steps}: this model has {n_train} steps; use 1 to {n_train - 1}")
        return leading_timesteps(n_train, n_steps, 1)

    def first_timestep(self) -> int:
        """981."""
        return self.timesteps(SCREEN_STEPS)[0]

    def noisiest_timestep(self) -> int:
        """999."""
        return len(self._alphas) - 1

    def _mixture(self, prompt: str) -> dict[str, torch.Tensor]:
        if prompt == "":
            weights, means, variances = self._everything()
        else:
            weights, means, variances = self._meaning(prompt)
        width = max(2, 1 + len(self._pictures)) - len(weights)
        mean = means[0]
        return {
            "log_weights": torch.tensor([*map(math.log, weights), *[-math.inf] * width], dtype=torch.float64),
            "means": torch.stack([*means, *[torch.zeros_like(mean)] * width]),
            "variances": torch.stack([*variances, *[torch.ones_like(mean)] * width]),
        }

    def _everything(self) -> tuple[list[float], list[torch.Tensor], list[torch.Tensor]]:
        spec, n = self._spec, len(self._pictures)
        moves_D = (self._directions_RD**2).sum(dim=0) * spec.spread**2
        broad = moves_D + spec.detail**2 + spec.noise**2
        weight = 1 - (spec.planted_weight if n else 0)
        return (
            [weight, *[spec.planted_weight / max(n, 1)] * n],
            [torch.zeros_like(broad), *self._pictures],
            [broad, *[torch.full_like(broad, spec.sharpness**2)] * n],
        )

    def _meaning(self, prompt: str) -> tuple[list[float], list[torch.Tensor], list[torch.Tensor]]:
        spec = self._spec
        draw = generator(spec.seed, "prompt", prompt)
        move_R = torch.from_numpy(draw.standard_normal(len(self._directions_RD)))
        own_D = torch.from_numpy(draw.standard_normal(self._directions_RD.shape[1]))
        mean = (move_R[:, None] * self._directions_RD).sum(dim=0) * spec.spread + own_D * spec.detail
        variance = torch.full_like(mean, spec.noise**2)
        place = self._places.get(prompt)
        if place is None:
            return [1.0], [mean], [variance]
        share = spec.planted[place].share
        peak = torch.full_like(mean, spec.sharpness**2)
        if share == 1:
            return [1.0], [self._pictures[place]], [peak]
        return [1 - share, share], [mean, self._pictures[place]], [variance, peak]


def read_spec(path: Path) -> GaussianSpec:
    """The specification in a model.json. Raises UserError naming the file and the mistake."""
    try:
        return GaussianSpec.model_validate(json.loads(path.read_bytes()))
    except OSError as error:
        raise UserError(f"{path}: cannot read the model: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        what = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{path}: {printable(where + ': ' if where else '')}{printable(what, 500)}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a model.json: {printable(str(error))}") from error


def digest_of_spec(spec: GaussianSpec) -> str:
    """SHA-256 of the specification's canonical JSON."""
    return hashlib.sha256(json.dumps(spec.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def _by_width(conditioning: Conditioning) -> list[tuple[torch.Tensor, Conditioning]]:
    """Rows with nothing beyond two components and the other rows, where there are such: their numbers, their mixtures.

    So that a prompt is not computed with the components of no prompt, which is everything at once. Of two components
    there is one addition, so the padding changes no bit.
    """
    wide_B = torch.isfinite(conditioning.tensors["log_weights"][:, 2:]).any(dim=1)
    widths = ((~wide_B, 2), (wide_B, None))
    chosen = [(torch.nonzero(rows_B)[:, 0], width) for rows_B, width in widths if rows_B.any()]
    return [
        (rows, Conditioning({name: tensor[:, :width][rows] for name, tensor in conditioning.tensors.items()}))
        for rows, width in chosen
    ]


def _sum(values: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """Sum over an axis by halving: the same order of additions whatever the batch or thread count."""
    while (n := values.shape[dim]) > 1:
        half = n // 2
        folded = values.narrow(dim, 0, half) + values.narrow(dim, half, half)
        values = torch.cat([folded, values.narrow(dim, 2 * half, 1)], dim=dim) if n % 2 else folded
    return values.select(dim, 0)


def _smooth_directions(shape: tuple[int, int, int]) -> torch.Tensor:
    """For each channel a constant and a horizontal half wave, each of root mean square 1 over its channel."""
    channels, height, width = shape
    wave_W = torch.cos(math.pi * (torch.arange(width, dtype=torch.float64) + 0.5) / width) * math.sqrt(2)
    found = []
    for channel in range(channels):
        for pattern_W in (torch.ones(width, dtype=torch.float64), wave_W):
            direction = torch.zeros(shape, dtype=torch.float64)
            direction[channel] = pattern_W.expand(height, width)
            found.append(direction.flatten())
    return torch.stack(found)


def _blocks(spec: GaussianSpec, i: int) -> torch.Tensor:
    """The i-th planted picture: blocks of 2 x 2 elements of a random sign and strength, float64, (C, H, W)."""
    channels, height, width = spec.latent_shape
    draw = generator(spec.seed, "planted", i)
    small = draw.uniform(0.4, 0.95, (channels, (height + 1) // 2, (width + 1) // 2))
    signs = draw.choice([-1.0, 1.0], small.shape)
    whole = torch.from_numpy(small * signs).repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    return whole[:, :height, :width].contiguous()
