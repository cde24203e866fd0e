"""Rows of a network alone, without a screen around it: bare forwards, forms of one forward, and the text encoder.

Shapes: B latents in a forward, L tokens, E text embedding, C H W latent.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch

from pipelines.bench.timing import Contender
from sharpaudit.denoisers.base import Conditioning, Denoiser
from sharpaudit.seeds import screen_latent


class Bare(Denoiser, Protocol):
    """A model whose network can be evaluated by itself."""

    def network(self, x_BCHW: torch.Tensor, t: float, conditioning: Conditioning) -> torch.Tensor: ...


@runtime_checkable
class Opened(Bare, Protocol):
    """A model that shows its modules: a UNet that takes `encoder_hidden_states`, and a text encoder that takes ids."""

    @property
    def unet(self) -> torch.nn.Module: ...
    @property
    def text_encoder(self) -> torch.nn.Module: ...


def bare(
    denoiser: Bare,
    prompts: Sequence[str],
    batch: int,
    passes: Sequence[int] = (1, 2),
    name: str = "floor",
) -> Contender:
    """The network's forwards alone that a screen makes, in the batches in which it makes them.

    passes: rows of each forward, in batches of prompts. A finite difference makes one of a batch and one of twice as
    many rows: both branches at the displaced latents. Three forwards of a batch each would be no floor: fewer and
    larger ones take less time.
    """
    with torch.no_grad():
        some = denoiser.encode(list(prompts[:batch]))
    x_CHW, t = screen_latent(0, 0, denoiser.latent_shape).to(denoiser.device), denoiser.first_timestep()
    batches = [Conditioning.stack([some] * n) for n in passes]
    forwards = [(x_CHW.expand(len(rows), -1, -1, -1).contiguous(), rows) for rows in batches]

    def run() -> None:
        with torch.no_grad():
            for x_BCHW, rows in forwards:
                denoiser.network(x_BCHW, t, rows)

    nfe = sum(passes)
    what = f"floor: {nfe} bare evaluation{'s' * (nfe > 1)} a prompt, in the same batches"
    return Contender(name, what, len(some), nfe, run)


def forms(denoiser: Opened, prompts: Sequence[str], batch: int, *, compiled: bool) -> Iterator[Contender]:
    """One bare forward of a batch without what makes it fast here, and compiled by inductor, which takes a minute."""
    with torch.no_grad():
        hidden_BLE = denoiser.encode(list(prompts[:batch])).tensors["prompt"]
    x_CHW, t = screen_latent(0, 0, denoiser.latent_shape), torch.tensor(denoiser.first_timestep())
    x_BCHW = x_CHW.expand(len(hidden_BLE), -1, -1, -1)

    def row(name: str, what: str, network: Any, layout: torch.memory_format) -> Contender:
        latents_BCHW = x_BCHW.contiguous(memory_format=layout).to(denoiser.device)
        when = t.to(denoiser.device)

        def run() -> None:
            with torch.no_grad():
                network(latents_BCHW, when, encoder_hidden_states=hidden_BLE, return_dict=False)

        return Contender(name, what, len(hidden_BLE), 1, run)

    last, first = torch.channels_last, torch.contiguous_format
    plain = copy.deepcopy(denoiser.unet)
    yield row("forward", "bare forward, channels last, as used", denoiser.unet, last)
    yield row("forward_contiguous", "bare forward, channels first", copy.deepcopy(plain).to(memory_format=first), first)
    if compiled:
        yield row("forward_compiled", "bare forward, torch.compile", torch.compile(plain), last)
    for name, size in (("text_single", 1), ("text", batch)):
        what = f"text encoder, {size if size > 1 else 'one'} prompt{'s' * (size > 1)} at a time"
        yield Contender(name, what, len(prompts[:batch]), 0, partial(_encode, denoiser, prompts[:batch], size))


def _encode(denoiser: Denoiser, prompts: Sequence[str], size: int) -> None:
    with torch.no_grad():
        for first in range(0, len(prompts), size):
            denoiser.encode(list(prompts[first : first + size]))
