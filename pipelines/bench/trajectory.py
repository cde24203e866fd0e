"""Published detectors along a sampling trajectory: every one of them is read off the same 50 steps.

All prompts share the noise of a seed, as in the screen. With De_t = eps_c - eps_0 at step t, A the cross-attention of
the conditional branch (mean over heads, layers and pixels), E its entropy over tokens and E_pad the entropy's part from
the end token on; larger means more memorised:

    tiled_l2           minus the mean over pairs of a prompt's pictures of the largest of the distances of their 16
                       tiles (Carlini et al., USENIX Security 2023); root mean square, 0 to 1
    layer_entropy      E of the fourth cross-attention layer at the first step (LE of Ren et al., ECCV 2024)
    attention_entropy  mean over the last ten steps of E and of E_pad, less E_pad of the first (AE, ibid.)
    bright_ending      mean over t of |De_t m| / mean of m, with m the end token's attention at the last step in the
                       finest layers of the descending blocks (BE of Chen et al., ICLR 2025)
    noise_gap_k        mean over the first k steps of |De_t| (Wen et al., ICLR 2024)
    sharpness          |DH Ds| at the first step by a finite difference (Jeon et al., ICML 2025)

Every chunk of prompts at a seed is a file of its own, so a bench that was stopped goes on.

Shapes: N prompts, B of a batch, K seeds, L tokens, T steps, C H W latent, pictures of H_px W_px pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipelines.bench.timing import now
from sharpaudit.batching import in_batches
from sharpaudit.denoisers.base import AttentionRequest, Conditioning, Denoiser
from sharpaudit.denoisers.sampling import DDIM, Guided, Step, follow, times
from sharpaudit.errors import Status, UserError
from sharpaudit.scores.attention_entropy import attention_entropy
from sharpaudit.scores.noise_gap import delta_eps
from sharpaudit.scores.sharpness import finite_difference
from sharpaudit.seeds import screen_latent
from sharpaudit.tables.records import digest_of

STEPS, GUIDANCE = 50, 7.5
"""As all of these papers sample."""
LATE = 10
"""Steps at the end over which attention entropy is averaged."""
FIRSTS = (1, 5, 50)
"""Steps over which the noise gap is averaged."""
NAMES = ("layer_entropy", "attention_entropy", "bright_ending", *(f"noise_gap_{k}" for k in FIRSTS), "sharpness")
"""Of one picture; tiled_l2 is of several."""
EVALUATIONS = {"layer_entropy": 1, "attention_entropy": 2 * STEPS, "bright_ending": 2 * STEPS, "sharpness": 4}
EVALUATIONS |= {f"noise_gap_{k}": 2 * k for k in FIRSTS} | {"tiled_l2": 2 * STEPS}
"""Of the network, for each prompt and seed, were the detector asked for alone."""
TILES = 4
CHUNK = 16
Values = npt.NDArray[np.float64]
Row = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Seed:
    """What N prompts show at one seed: values (N,) by name, pictures (N, H_px, W_px, 3).

    seconds: by detector, of all of them together: until its last evaluation, whatever else was recorded on the way;
    of layer_entropy half of the first step, which evaluates both branches.
    """

    values: dict[str, Values]
    pictures: npt.NDArray[np.uint8]
    seconds: dict[str, float]

    def of(self, rows: Sequence[int]) -> Seed:
        """What some of the prompts show; of the time their share."""
        share = len(rows) / len(self.pictures)
        values = {name: found_N[list(rows)] for name, found_N in self.values.items()}
        return Seed(values, self.pictures[list(rows)], {name: s * share for name, s in self.seconds.items()})


def measured(
    denoiser: Denoiser, prompts: Sequence[str], lengths: Sequence[int], seed: int, k: int, step: float, out: Path
) -> Seed:
    """What prompts show at draw k of a seed, chunk by chunk, from `out` where it is there.

    lengths: tokens of each prompt, special ones included. step: length of the finite difference.
    """
    out.mkdir(parents=True, exist_ok=True)
    x_CHW = screen_latent(seed, k, denoiser.latent_shape).to(denoiser.device)
    parts = []
    for first in range(0, len(prompts), CHUNK):
        some = range(first, min(first + CHUNK, len(prompts)))
        known = [denoiser.digest, [prompts[i] for i in some], seed, k, step, STEPS, GUIDANCE]
        path = out / f"{digest_of(known)[:24]}.npz"
        if not path.exists():

            def rows(chosen: list[int]) -> list[Row]:
                return _rows(denoiser, [prompts[i] for i in chosen], [lengths[i] for i in chosen], x_CHW, step)

            made = [row for row in in_batches(rows, some, CHUNK) if not isinstance(row, Status)]
            if len(made) < len(some):
                raise UserError("a prompt does not fit the memory of the device; a table needs all of them")
            columns: dict[str, Any] = {name: np.stack([row[name] for row in made]) for name in made[0]}
            part = path.with_suffix(".inprogress")
            with part.open("wb") as stream:
                np.savez(stream, **columns)
            part.replace(path)
        with np.load(path) as held:
            parts.append({name: held[name] for name in held.files})
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    values = {name: found[name] for name in NAMES}
    if lost := [name for name, found_N in values.items() if not np.isfinite(found_N).all()]:
        raise UserError(f"{', '.join(lost)}: a value is not finite; a table needs all of them")
    return Seed(values, found["pictures"], {name: float(found[f"seconds_{name}"].sum()) for name in EVALUATIONS})


def _rows(
    denoiser: Denoiser, prompts: Sequence[str], lengths: Sequence[int], x_CHW: torch.Tensor, step: float
) -> list[Row]:
    """Of each prompt: values by name, its picture, and its share of the time of each detector, seconds_NAME."""
    B, watch = len(prompts), _Watch(denoiser, torch.as_tensor(lengths))
    x_BCHW = x_CHW.expand(B, *x_CHW.shape).contiguous()
    with torch.no_grad():
        conditioning, empty = denoiser.encode(prompts), denoiser.unconditional(B)
        model = Guided(denoiser, conditioning, empty, GUIDANCE, watch.request)
        watch.model, begun = model, now()
        latents_BCHW = follow(DDIM.steps(model, x_BCHW, times(denoiser, STEPS)), watch)
        ended = now()
        pictures_BCHW = denoiser.decode(latents_BCHW)
        decoded = now()
        values = watch.values() | {"sharpness": _sharpness(denoiser, model, watch.first, step)}
        beyond = now() - decoded
    until = [at - begun for at in watch.at]
    spent = dict.fromkeys(("attention_entropy", "bright_ending"), ended - begun) | {"tiled_l2": decoded - begun}
    spent |= {f"noise_gap_{k}": until[k - 1] for k in FIRSTS} | {"layer_entropy": until[0] / 2}
    spent["sharpness"] = until[0] + beyond
    found: dict[str, npt.NDArray[Any]] = {name: v.double().cpu().numpy() for name, v in values.items()}
    found["pictures"] = (pictures_BCHW * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    found |= {f"seconds_{name}": np.full(B, seconds / B) for name, seconds in spent.items()}
    return [{name: column[i] for name, column in found.items()} for i in range(B)]


def _sharpness(denoiser: Denoiser, model: Guided, first: Step, step: float) -> torch.Tensor:
    both = Conditioning.stack([model.conditioning, model.unconditional])

    def difference(x_BCHW: torch.Tensor) -> torch.Tensor:
        x0_c, x0_0 = denoiser.predict(torch.cat([x_BCHW, x_BCHW]), first.t, both).x0_hat.chunk(2)
        return x0_c - x0_0

    return finite_difference(difference, first.x, first.x0_conditional - first.x0_unconditional, first.level, step)


@dataclass
class _Watch:
    """Sees every step of a batch. lengths: (B,), tokens of each prompt before it is cut."""

    denoiser: Denoiser
    lengths: torch.Tensor
    model: Guided = field(init=False)
    first: Step = field(init=False)
    at: list[float] = field(default_factory=list)
    """When each step was there."""
    gaps_TBD: list[torch.Tensor] = field(default_factory=list)
    entropies_TB: dict[int, torch.Tensor] = field(default_factory=dict)
    pads_TB: dict[int, torch.Tensor] = field(default_factory=dict)

    @property
    def request(self) -> AttentionRequest:
        """Every layer, pixel by pixel."""
        return AttentionRequest(tuple(self.denoiser.attention_layers), per_pixel=True)

    def __call__(self, step: Step) -> None:
        """Keep what detectors read of a step; maps are recorded of the first step and of the last ten alone."""
        self.gaps_TBD.append(delta_eps(step.x0_conditional - step.x0_unconditional, step.level))
        self.at.append(now())
        if step.attention:
            self._read(step)
        if step.number == 0:
            self.first = step
        self.model.record = self.request if step.number + 1 >= STEPS - LATE else None

    def _read(self, step: Step) -> None:
        layers = [layer_BLHW.mean(dim=(2, 3)) for layer_BLHW in step.attention.values()]
        mean_BL = torch.stack(layers).mean(dim=0)
        n_tokens = mean_BL.shape[1]
        ends_B = (self.lengths.clamp(max=n_tokens) - 1).to(mean_BL.device)
        padded_BL = torch.arange(n_tokens, device=mean_BL.device)[None] >= ends_B[:, None]
        self.entropies_TB[step.number] = attention_entropy(mean_BL)
        self.pads_TB[step.number] = attention_entropy(torch.where(padded_BL, mean_BL, 0.0))
        if step.number == 0:
            asked = AttentionRequest().chosen(tuple(self.denoiser.attention_layers))[0]
            self.layer_B = attention_entropy(layers[list(step.attention).index(asked)])
        if step.number == STEPS - 1:
            self.mask_BD = ending(step, ends_B, self.denoiser.latent_shape[-2:]).repeat(1, step.x.shape[1])

    def values(self) -> dict[str, torch.Tensor]:
        """Each with shape (B,)."""
        norms_TB = torch.stack([gap_BD.norm(dim=1) for gap_BD in self.gaps_TBD])
        masked_TB = torch.stack([(gap_BD * self.mask_BD).norm(dim=1) for gap_BD in self.gaps_TBD])
        late = range(STEPS - LATE, STEPS)
        entropy_B, pad_B = (torch.stack([kept[t] for t in late]).mean(0) for kept in (self.entropies_TB, self.pads_TB))
        return {f"noise_gap_{k}": norms_TB[:k].mean(0) for k in FIRSTS} | {
            "layer_entropy": self.layer_B,
            "attention_entropy": entropy_B + pad_B - self.pads_TB[0],
            "bright_ending": masked_TB.mean(0) / self.mask_BD.mean(1),
        }


def ending(step: Step, ends_B: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """The end token's attention in the finest layers of the descending blocks, at each pixel of the latent, (B, H * W).

    A layer coarser than the latent is enlarged bilinearly; a network without cross-attention there gives its finest.
    """
    down = {name: m for name, m in step.attention.items() if name.startswith("down_blocks")} or dict(step.attention)
    finest = max(layer_BLHW.shape[-2] * layer_BLHW.shape[-1] for layer_BLHW in down.values())
    rows = torch.arange(len(ends_B), device=ends_B.device)
    maps = [m[rows, ends_B] for m in down.values() if m.shape[-2] * m.shape[-1] == finest]
    mean_BHW = torch.stack(maps).mean(dim=0)
    large = torch.nn.functional.interpolate(mean_BHW[:, None], tuple(size), mode="bilinear", align_corners=False)
    return large[:, 0].flatten(1)


def tiled_l2(pictures_NKHWC: npt.NDArray[np.uint8]) -> Values:
    """Minus the mean distance of each prompt's pictures, with shape (N,): of two, that of their most unlike tile."""
    N, K, H, W = pictures_NKHWC.shape[:4]
    h, w = H // TILES, W // TILES
    cut = pictures_NKHWC[:, :, : h * TILES, : w * TILES].astype(np.float64) / 255
    tiles_NKRD = cut.reshape(N, K, TILES, h, TILES, w, -1).swapaxes(3, 4).reshape(N, K, TILES * TILES, -1)
    pairs = list(combinations(range(K), 2))
    far = [np.sqrt(np.square(tiles_NKRD[:, i] - tiles_NKRD[:, j]).mean(axis=-1)).max(axis=-1) for i, j in pairs]
    mean_N: Values = np.mean(far, axis=0)
    return -mean_N
