"""Random numbers that depend on names, never on order.

Every draw is keyed by what it is for: `generator(seed, "score", "3")` is seed 3 of the screen, whichever
worker, shard or batch asks. Philox is counter based, and the key is the SHA-256 of the names, so two
streams never overlap. Latents are drawn in float32 on the CPU and moved afterwards, since a GPU's
generator would give other numbers.

Shapes: K noise draws, C H W latent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import torch


def digest(*names: str | int) -> bytes:
    """SHA-256 of the names, unambiguous: ("ab", "c") and ("a", "bc") differ."""
    return hashlib.sha256(json.dumps(names, ensure_ascii=True).encode()).digest()


def generator(*names: str | int) -> np.random.Generator:
    """A Philox generator whose 128-bit key is the digest of `names`."""
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest(*names)[:16], "big")))


def latents(names: Sequence[Sequence[str | int]], shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal latents, one per entry of `names`, float32 on the CPU, with shape (K, *shape)."""
    draws = [generator(*entry).standard_normal(shape, dtype=np.float32) for entry in names]
    return torch.from_numpy(np.stack(draws)) if draws else torch.empty((0, *shape))


def screen_latent(seed: int, k: int, shape: tuple[int, ...]) -> torch.Tensor:
    """The x_T of the screen's seed k, common to all prompts, with the given shape."""
    return screen_latents(seed, [k], shape)[0]


def screen_latents(seed: int, ks: Sequence[int], shape: tuple[int, ...]) -> torch.Tensor:
    """The x_T of the screen's seeds `ks`, as initial latents of samples, with shape (K, *shape)."""
    return latents([(seed, "screen", k) for k in ks], shape)


def screen_signs(seed: int, k: int, shape: tuple[int, ...]) -> torch.Tensor:
    """The probe of the screen's seed k: random signs, float32 on the CPU, with the given shape."""
    signs = generator(seed, "probe", k).integers(2, size=shape).astype(np.float32)
    return torch.from_numpy(2 * signs - 1)


def sample_latents(seed: int, keys: Sequence[tuple[str, int]], shape: tuple[int, ...]) -> torch.Tensor:
    """The x_T of samples, one per (prompt_id, seed_index), independent between prompts, with shape (K, *shape)."""
    return latents([(seed, "sample", prompt_id, index) for prompt_id, index in keys], shape)


def rank_hash(seed: int, purpose: str, prompt_id: str) -> str:
    """A hex string whose order is a random order of prompts: the smallest are drawn first."""
    return digest(seed, purpose, prompt_id).hex()
