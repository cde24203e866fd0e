"""Latents: standard normal, independent, and a function of their name alone."""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats

from sharpaudit.seeds import rank_hash, sample_latents, screen_latent, screen_signs

SHAPE = (4, 16, 16)


def test_latents_are_standard_normal() -> None:
    draws = np.concatenate([screen_latent(0, k, SHAPE).numpy().ravel() for k in range(40)])
    assert stats.kstest(draws, "norm").pvalue > 1e-3


def test_two_seeds_and_two_prompts_are_uncorrelated() -> None:
    keys = [(f"{i:032x}", k) for i in range(20) for k in range(2)]
    common = torch.stack([screen_latent(0, k, SHAPE) for k in range(4)])
    flat = torch.cat([sample_latents(0, keys, SHAPE), common]).flatten(1).numpy()
    correlations = np.corrcoef(flat)[np.triu_indices(len(flat), 1)]
    # Of 946 correlations of 1,024 independent pairs the largest lies near 3.3 / 32.
    assert np.abs(correlations).max() < 5 / 32


def test_a_latent_depends_on_its_name_alone() -> None:
    one = sample_latents(3, [("b", 1)], SHAPE)[0]
    many = sample_latents(3, [("a", 0), ("b", 0), ("b", 1), ("c", 5)], SHAPE)
    assert torch.equal(one, many[2])
    assert torch.equal(screen_latent(3, 7, SHAPE), screen_latent(3, 7, SHAPE))
    assert not torch.equal(screen_latent(3, 7, SHAPE), screen_latent(3, 6, SHAPE))
    assert not torch.equal(sample_latents(4, [("b", 1)], SHAPE)[0], one)


def test_signs_are_even_and_independent() -> None:
    signs = np.stack([screen_signs(0, k, SHAPE).numpy().ravel() for k in range(40)])
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert abs(signs.mean()) < 4 / signs.size**0.5
    assert np.abs(np.corrcoef(signs)[np.triu_indices(40, 1)]).max() < 5 / 32


def test_the_hash_order_is_a_random_order() -> None:
    ids = [f"{i:032x}" for i in range(2000)]
    chosen = sorted(ids, key=lambda i: rank_hash(0, "control", i))[:1000]
    ranks = np.array(sorted(int(i, 16) for i in chosen))
    assert stats.kstest(ranks / 2000, "uniform").pvalue > 1e-3
    assert chosen != sorted(ids, key=lambda i: rank_hash(1, "control", i))[:1000]
