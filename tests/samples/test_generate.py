"""Generation: planted prompts reproduce their picture, and a sample depends on its own key alone."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.flow.identity import named_plugs
from sharpaudit.config import load, override
from sharpaudit.denoisers.base import Conditioning
from sharpaudit.denoisers.sampling import DDIM, DPM_SOLVER, Guided, Solver, follow, times
from sharpaudit.errors import Status, UserError
from sharpaudit.plugs import SOLVERS
from sharpaudit.samples.generate import Generator
from sharpaudit.seeds import latents, sample_latents, screen_latent, screen_latents
from tests.support.wrapped import Wrapped, analytic

EXAMPLE = Path(__file__).parents[2] / "configs/audits/analytic.toml"
SHARES = (0.9, 0.95, 1.0, 0.3)
KEYS = [("planted 0", 0), ("a cat", 0), ("planted 3", 1), ("a cat", 1), ("a dog", 0)]


@pytest.fixture(scope="module")
def model():
    return analytic(SHARES)


def make(model, keys, batch_size=8, steps=25, seed=0):
    """Here a prompt's id is the prompt itself."""
    prompts = [prompt for prompt, _ in keys]
    return Generator(model, seed, steps, 5.0, batch_size).pictures(prompts, keys)


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
    x = sample_latents(0, KEYS[1:2], model.latent_shape)
    asked = Guided(model, model.encode(["a cat"]), model.unconditional(), 5.0)
    exact = model.decode(follow(DDIM.steps(asked, x, times(model, 4))))[0].permute(1, 2, 0).numpy() * 255
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
        def predict(self, x, t, conditioning, **options):
            assert not torch.is_grad_enabled()
            return super().predict(x, t, conditioning)

    make(Watching(model), KEYS[:1], steps=2)
    assert isinstance(model.encode(["a"]), Conditioning)


def test_initial_latents_may_be_handed_in(model, pictures):
    """Those that the keys name give the same bits, in any batch; others give other pictures."""
    prompts, x_T = [prompt for prompt, _ in KEYS], sample_latents(0, KEYS, model.latent_shape)
    for batch_size in (2, 8):
        found = Generator(model, 0, 4, 5.0, batch_size).pictures(prompts, x_T)
        assert all(np.array_equal(left, right) for left, right in zip(found, pictures, strict=True))
    other = Generator(model, 0, 4, 5.0, 8).pictures(prompts, -x_T)
    assert not any(np.array_equal(left, right) for left, right in zip(other, pictures, strict=True))


def test_the_noise_of_the_screen_shows_from_which_initialisation_a_copy_arises(model):
    """Of a prompt that copies now and then: which of the screen's seeds do."""
    seeds = range(40)
    x_T = screen_latents(0, seeds, model.latent_shape)
    assert torch.equal(x_T[7], screen_latent(0, 7, model.latent_shape))
    drawn = Generator(model, 5, 25, 5.0, 80)
    copies = distances(model, drawn.pictures(["planted 3"] * 40, x_T))[:, 3] < 0.1
    assert 0.05 < copies.mean() < 0.9
    # From noise nearly that of the screen the same; from noise that has nothing to do with it, copies as often or not.
    near = x_T + 0.01 * latents([("near", k) for k in seeds], model.latent_shape)
    again = distances(model, drawn.pictures(["planted 3"] * 40, near))[:, 3] < 0.1
    assert (again == copies).mean() > 0.9
    one = int(np.flatnonzero(copies)[0])
    alone = drawn.pictures(["planted 3"], x_T[one : one + 1])
    assert distances(model, alone)[0, 3] < 0.1


def test_who_watches_sees_the_steps_of_every_batch_and_may_change_them(model):
    seen = []

    def unguided(step):
        seen.append((step.number, len(step.x)))
        step.x0 = step.guided(0.0)

    prompts = [prompt for prompt, _ in KEYS]
    found = Generator(model, 0, 3, 5.0, 6, watch=unguided).pictures(prompts, KEYS)
    assert seen == [(0, 3), (1, 3), (2, 3), (0, 2), (1, 2), (2, 2)]
    expected = Generator(model, 0, 3, 0.0, 6).pictures(prompts, KEYS)
    assert all(np.array_equal(left, right) for left, right in zip(found, expected, strict=True))


def test_the_configuration_chooses_all_of_it(model):
    config = load(EXAMPLE)
    drawn = Generator.of(override(config, ["samples.solver=dpm-solver++", "samples.steps=7", "seed=3"]), model)
    assert (drawn.solver, drawn.steps, drawn.seed, drawn.evaluations) == (DPM_SOLVER, 7, 3, 14)
    assert Generator.of(config, model).solver is DDIM
    x = sample_latents(3, KEYS[:1], model.latent_shape)
    asked = Guided(model, model.encode([KEYS[0][0]]), model.unconditional(), drawn.guidance)
    exact = model.decode(follow(DPM_SOLVER.steps(asked, x, times(model, 7))))[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(drawn.pictures([KEYS[0][0]], KEYS[:1])[0] - exact).max() <= 0.5 + 1e-4


def _heun(model, x, times):
    """Heun's method in the coordinates of a flow: what a stranger may bring."""
    for i, (t, after) in enumerate(pairwise(times)):
        step, level = model.evaluate(i, t, x), model.level(after)
        yield step
        ahead = model.evaluate(i, after, step.onward(level, step.x0))
        x = step.onward(level, (step.x0 + ahead.x0) / 2)
    return x


def test_a_solver_of_a_stranger_is_named_like_ours(model):
    SOLVERS.add(Solver("heun", _heun, per_step=4, digest="1"))
    try:
        config = override(load(EXAMPLE), ["samples.solver=heun", "samples.steps=6"])
        drawn = Generator.of(config, model)
        assert drawn.evaluations == 24
        assert (SOLVERS, "heun") in named_plugs(config)
        counting = Wrapped(model)
        made = replace(drawn, denoiser=counting).pictures(["planted 2"], KEYS[:1])
        assert sum(counting.rows) == 24
        assert distances(model, made)[0, 2] < 0.05
    finally:
        SOLVERS.remove("heun")
    with pytest.raises(UserError, match=r'samples.solver = "heun": no solver is called "heun"'):
        override(load(EXAMPLE), ["samples.solver=heun"])
