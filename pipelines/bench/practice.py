"""The field's practice: how released detectors screen, on our model and latents, so that speed alone differs.

One prompt at a time; the empty text and the prompt are encoded anew; both branches of all seeds are one forward. Wen et
al. (ICLR 2024) stop there: the mean over seeds of ||eps_c - eps_0||. Jeon, Kim and No (ICML 2025) go on with the exact
product of both Jacobians and the difference of the scores, by forward mode with math attention, the only kernel that
has one. What released code does beside that (a last forward whose result is dropped, a sampling step) is left out.

The bare loop makes the same calls of the text encoder and the UNet, from token ids and latents that lie ready, and
computes nothing of what they give: it tells what our way of writing the practice costs it.

Shapes: K seeds, C H W latent, L tokens, E text embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch

from pipelines.bench.networks import Opened
from pipelines.bench.timing import Contender
from sharpaudit.denoisers.base import Conditioning, Denoiser
from sharpaudit.denoisers.jacobian import product
from sharpaudit.seeds import screen_latent

Practice = Callable[[Denoiser, str, torch.Tensor], float]


@runtime_checkable
class Ids(Protocol):
    """A tokenizer that gives the input_ids of prompts, with shape (B, L)."""

    def ids(self, prompts: Sequence[str]) -> Mapping[str, torch.Tensor]: ...


def wen(denoiser: Denoiser, prompt: str, x_KCHW: torch.Tensor) -> float:
    """Mean over seeds of ||eps_c - eps_0||: one forward of 2 K rows."""
    t, both = denoiser.first_timestep(), _both(denoiser, prompt, len(x_KCHW))
    level = denoiser.level(t)
    x0_0, x0_c = denoiser.predict(torch.cat([x_KCHW, x_KCHW]), t, both).x0_hat.chunk(2)
    return _mean_norm((level.a / level.sigma) * (x0_0 - x0_c))


def jeon(denoiser: Denoiser, prompt: str, x_KCHW: torch.Tensor) -> float:
    """Mean over seeds of ||DH Ds||: one forward of 2 K rows, then a product of all 2 K rows."""
    t, both = denoiser.first_timestep(), _both(denoiser, prompt, len(x_KCHW))
    level = denoiser.level(t)

    def scores(x: torch.Tensor) -> torch.Tensor:
        x_2KCHW = torch.cat([x, x])
        return (level.a * denoiser.predict(x_2KCHW, t, both).x0_hat - x_2KCHW) / level.sigma**2

    s_0, s_c = scores(x_KCHW).chunk(2)
    h_0, h_c = product(scores, x_KCHW, s_c - s_0).chunk(2)
    return _mean_norm(h_c - h_0)


def practised(name: str, practice: Practice, denoiser: Denoiser, prompts: Sequence[str], n_seeds: int) -> Contender:
    """A row of the practice on prompts, at the latents of our own screen. practice: `wen` or `jeon`."""
    x_KCHW = _latents(denoiser, n_seeds)

    def run() -> list[float]:
        with torch.no_grad():
            return [practice(denoiser, prompt, x_KCHW) for prompt in prompts]

    rows, what = 2 * n_seeds, "Wen's practice: one prompt at a time, both branches"
    if practice is jeon:
        rows, what = 8 * n_seeds, "Jeon's practice: the same, then the exact product of both"
    return Contender(name, f"{what}, n = {n_seeds}", len(prompts), rows, run)


def bare_loop(
    name: str,
    practice: Practice,
    denoiser: Opened,
    tokenizer: Ids,
    prompts: Sequence[str],
    n_seeds: int,
) -> Contender:
    """A row of the network calls alone that a practice makes, on the modules themselves."""
    unet, text_encoder, t = denoiser.unet, denoiser.text_encoder, torch.tensor(denoiser.first_timestep())
    x_KCHW, t = _latents(denoiser, n_seeds), t.to(denoiser.device)
    x_2KCHW = torch.cat([x_KCHW, x_KCHW]).contiguous(memory_format=torch.channels_last)
    ids = [[tokenizer.ids([text])["input_ids"].to(denoiser.device) for text in ("", prompt)] for prompt in prompts]

    def run() -> None:
        with torch.no_grad():
            for texts in ids:
                hidden_BLE = torch.cat([text_encoder(i, return_dict=False)[0].expand(n_seeds, -1, -1) for i in texts])
                _output(unet, x_2KCHW, t, hidden_BLE)
                if practice is jeon:
                    product(partial(_doubled, unet, t, hidden_BLE), x_KCHW, x_KCHW)

    whose, rows = ("Jeon's", 8 * n_seeds) if practice is jeon else ("Wen's", 2 * n_seeds)
    return Contender(name, f"bare loop over the network calls of {whose} practice, n = {n_seeds}", len(ids), rows, run)


def _both(denoiser: Denoiser, prompt: str, n_seeds: int) -> Conditioning:
    """The empty prompt n times, then the prompt n times, each encoded by itself as released code does."""
    parts = denoiser.unconditional(), denoiser.encode([prompt])
    return Conditioning.stack([part.select([0] * n_seeds) for part in parts])


def _latents(denoiser: Denoiser, n_seeds: int) -> torch.Tensor:
    return torch.stack([screen_latent(0, k, denoiser.latent_shape) for k in range(n_seeds)]).to(denoiser.device)


def _mean_norm(difference_KCHW: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(difference_KCHW.flatten(1), dim=1).mean())


def _output(unet: Any, x_BCHW: torch.Tensor, t: torch.Tensor, hidden_BLE: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = unet(x_BCHW, t, encoder_hidden_states=hidden_BLE, return_dict=False)[0]
    return found


def _doubled(unet: Any, t: torch.Tensor, hidden_BLE: torch.Tensor, x_KCHW: torch.Tensor) -> torch.Tensor:
    return _output(unet, torch.cat([x_KCHW, x_KCHW]), t, hidden_BLE)
