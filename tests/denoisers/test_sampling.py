"""One sampler: the steps of diffusers' scheduler, at two evaluations each."""

from __future__ import annotations

import pytest
import torch

from sharpaudit.denoisers.sampling import ddim
from sharpaudit.seeds import latents
from tests.scores.wrapped import Wrapped, analytic

PROMPTS = ["planted 0", "a cat", "planted 1"]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """At the sizes of these tests a second one costs more than it brings."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model():
    return analytic((0.95, 0.4))


def noise(n):
    return latents([("test", i) for i in range(n)], (3, 8, 8))


def sample(model, prompts, x, steps=25, guidance=5.0):
    return ddim(model, x, model.encode(prompts), model.encode([""] * len(prompts)), steps=steps, guidance=guidance)


@pytest.mark.parametrize(("steps", "guidance"), [(1, 5.0), (4, 0.0), (25, 5.0), (50, 7.5), (7, 1.0)])
def test_samples_are_those_of_the_scheduler_of_diffusers(model, steps, guidance):
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        1000, 0.00085, 0.012, "scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    scheduler.alphas_cumprod = torch.tensor([model.level(t).a ** 2 for t in range(1000)], dtype=torch.float64)
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    scheduler.set_timesteps(steps)
    x = noise(3)
    theirs = x
    for t in scheduler.timesteps.tolist():
        level = model.level(t)
        eps_c, eps_0 = (
            (theirs - level.a * model.predict(theirs, t, model.encode(prompts)).x0_hat) / level.sigma
            for prompts in (PROMPTS, [""] * 3)
        )
        theirs = scheduler.step(eps_0 + guidance * (eps_c - eps_0), t, theirs, eta=0.0).prev_sample.float()
    torch.testing.assert_close(sample(model, PROMPTS, x, steps, guidance), theirs, rtol=1e-3, atol=1e-4)


def test_a_sample_costs_two_evaluations_a_step_in_one_batch(model):
    counting = Wrapped(model)
    sample(counting, PROMPTS, noise(3), steps=6)
    assert counting.rows == [6] * 6


def test_without_guidance_the_prompt_plays_no_part(model):
    x = noise(3)
    assert torch.equal(sample(model, PROMPTS, x, guidance=0.0), sample(model, [""] * 3, x, guidance=0.0))
    # For the empty prompt guidance has nothing to add.
    assert torch.equal(sample(model, [""] * 3, x, guidance=9.0), sample(model, [""] * 3, x, guidance=0.0))


def test_a_trajectory_has_the_same_bits_alone_and_in_a_batch(model):
    x = noise(3)
    alone = [sample(model, [prompt], x[i : i + 1]) for i, prompt in enumerate(PROMPTS)]
    assert torch.equal(sample(model, PROMPTS, x), torch.cat(alone))
