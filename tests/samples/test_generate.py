"""Generation: planted prompts reproduce their picture, and a sample depends on its own key alone."""

from __future__ import annotations

from hashlib import sha256

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sharpaudit.denoisers.base import Conditioning
from sharpaudit.errors import Status
from sharpaudit.samples.generate import generate
from sharpaudit.seeds import sample_latents
from tests.scores.wrapped import Wrapped, analytic

SHARES = (0.9, 0.95, 1.0, 0.3)
KEYS = [("planted 0", 0), ("a cat", 0), ("planted 3", 1), ("a cat", 1), ("a dog", 0)]


@pytest.fixture(scope="module")
def model():
    return analytic(SHARES)


def make(model, keys, batch_size=8, steps=25, seed=0):
    """Here a prompt's id is the prompt itself."""
    prompts = [prompt for prompt, _ in keys]
    return generate(model, prompts, keys, seed=seed, steps=steps, guidance=5.0, batch_size=batch_size)


@pytest.fixture(scope="module")
def pictures(model):
    return make(model, KEYS, steps=4)


def distances(model, pictures):
    """Root mean square difference of each picture from each planted one, in units of the full range."""
    planted = torch.stack([model.planted_latent(i) for i in range(len(SHARES))])
    references = model.decode(planted).permute(0, 2, 3, 1).numpy()
    made = np.stack(pictures) / 255
    return np.sqrt(((made[:, None] - references) ** 2).mean(axis=(2, 3, 4)))


def test_planted_prompts_reproduce_their_picture_and_others_never_do(model):
    memorised = [(f"planted {i}", k) for i in range(3) for k in range(10)]
    harmless = [(f"harmless {i}", 0) for i in range(30)]
    found = distances(model, make(model, memorised + harmless, batch_size=64))
    own = found[np.arange(30), np.repeat(np.arange(3), 10)]
    assert (own < 0.05).mean() > 0.9
    assert found[30:].min() > 0.2


def test_a_share_of_a_prompt_gives_copies_sometimes(model):
    found = distances(model, make(model, [("planted 3", k) for k in range(40)], batch_size=80))[:, 3]
    assert 0.05 < (found < 0.1).mean() < 0.9


@settings(deadline=None, max_examples=10)
@given(st.permutations(range(len(KEYS))), st.integers(1, 12))
def test_order_and_batch_size_change_no_bit(model, pictures, order, batch_size):
    found = make(model, [KEYS[i] for i in order], batch_size, steps=4)
    assert all(np.array_equal(left, pictures[i]) for left, i in zip(found, order, strict=True))


def test_every_key_and_every_seed_has_a_picture_of_its_own(model, pictures):
    every = [*pictures, *make(model, KEYS, steps=4, seed=1)]
    assert len({sha256(picture.tobytes()).digest() for picture in every}) == 2 * len(KEYS)


def test_pictures_are_rounded_colours(model, pictures):
    """Against the first principles, for one sample without batching."""
    from sharpaudit.denoisers.sampling import ddim

    x = sample_latents(0, KEYS[1:2], model.latent_shape)
    latents = ddim(model, x, model.encode(["a cat"]), model.encode([""]), steps=4, guidance=5.0)
    exact = model.decode(latents)[0].permute(1, 2, 0).numpy() * 255
    assert pictures[1].shape == (32, 32, 3)
    assert pictures[1].dtype == np.uint8
    assert np.abs(pictures[1] - exact).max() <= 0.5 + 1e-4


def test_a_sample_costs_two_evaluations_a_step_in_batches_of_the_size_given(model):
    counting = Wrapped(model)
    make(counting, KEYS, batch_size=6, steps=3)
    assert counting.rows == [6] * 3 + [4] * 3


class Undecodable(Wrapped):
    """Its decoder fails, as one in half precision can, on the pictures of other latents than those kept."""

    def decode(self, latents):
        pictures = self.inner.decode(latents)
        pictures[0, 0, 0, 0] = float("nan")
        return pictures


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
def test_a_sample_that_is_not_finite_spoils_no_other(model, pictures, poison):
    found = make(Wrapped(model, poisoned={"a dog"}, poison=poison), KEYS, steps=4)
    assert found[4] is Status.NON_FINITE
    assert all(np.array_equal(left, right) for left, right in zip(found[:4], pictures, strict=False))
    decoded = make(Undecodable(model), KEYS, batch_size=10, steps=4)
    assert decoded[0] is Status.NON_FINITE
    assert all(np.array_equal(left, right) for left, right in zip(decoded[1:], pictures[1:], strict=True))


def test_short_memory_changes_no_bit(model, pictures):
    found = make(Wrapped(model, most_rows=2), KEYS, steps=4)
    assert all(np.array_equal(left, right) for left, right in zip(found, pictures, strict=True))
    assert make(Wrapped(model, most_rows=1), KEYS, steps=4) == [Status.OUT_OF_MEMORY] * len(KEYS)


def test_nothing_asked_for_is_nothing_made(model):
    assert make(model, []) == []


def test_no_gradient_is_kept(model):
    """A trajectory's graph would fill the memory."""

    class Watching(Wrapped):
        def predict(self, x, t, conditioning):
            assert not torch.is_grad_enabled()
            return super().predict(x, t, conditioning)

    make(Watching(model), KEYS[:1], steps=2)
    assert isinstance(model.encode(["a"]), Conditioning)
