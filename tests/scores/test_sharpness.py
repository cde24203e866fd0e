"""Sharpness against the closed-form Hessians of the analytic model."""

from __future__ import annotations

import pytest
import torch

from sharpaudit.denoisers.base import NoiseLevel
from sharpaudit.scores.sharpness import exact, finite_difference
from sharpaudit.seeds import generator, latents
from tests.support.wrapped import analytic, exact_sharpness

PROMPTS = ["planted 0", "planted 1", "a cat", "planted 2"]


@pytest.fixture(scope="module")
def model():
    return analytic((0.5, 0.9, 1.0), (3, 2, 2))


def setting(model, prompts, t):
    """delta_x0 as a function, x, delta_x0(x), the level."""
    conditioning, empty = model.encode(prompts), model.encode([""] * len(prompts))

    def difference(x):
        return model.predict(x, t, conditioning).x0_hat - model.predict(x, t, empty).x0_hat

    x = latents([("test", i) for i in range(len(prompts))], model.latent_shape)
    return difference, x, difference(x), model.level(t)


@pytest.mark.parametrize("t", [981, 501, 101])
def test_forward_mode_is_the_closed_form(model, t):
    difference, x, delta, level = setting(model, PROMPTS, t)
    found = exact(difference, x, delta, level).double()
    torch.testing.assert_close(found, exact_sharpness(model, PROMPTS, x, level), rtol=1e-5, atol=0)


@pytest.mark.parametrize("t", [981, 501])
def test_finite_differences_approach_forward_mode(model, t):
    difference, x, delta, level = setting(model, PROMPTS, t)
    reference = exact(difference, x, delta, level)
    errors = [((finite_difference(difference, x, delta, level, h) / reference) - 1).abs().max() for h in (0.3, 0.03)]
    assert errors[1] < 0.02
    assert errors[1] < errors[0] / 3  # first order in the step


@pytest.mark.parametrize("step", [0.01, 1.0, 30.0])
def test_a_linear_difference_has_no_error_at_any_step(step):
    matrix = torch.from_numpy(generator("test").standard_normal((12, 12))).float()
    level = NoiseLevel(0.6, 0.8)

    def difference(x):
        return (x.flatten(1) @ matrix.T).reshape(x.shape)

    x = latents([("test", i) for i in range(5)], (3, 2, 2))
    delta = difference(x)
    expected = (0.6 / 0.64) ** 2 * (delta.flatten(1) @ matrix.T).norm(dim=1)
    torch.testing.assert_close(finite_difference(difference, x, delta, level, step), expected, rtol=1e-3, atol=0)
    torch.testing.assert_close(exact(difference, x, delta, level), expected, rtol=1e-5, atol=0)


def test_no_difference_is_no_sharpness(model):
    difference, x, delta, level = setting(model, ["", "a cat"], 981)
    assert finite_difference(difference, x, delta, level, 1.0)[0] == 0
    assert exact(difference, x, delta, level)[0] == 0
    assert finite_difference(difference, x, delta, level, 1.0)[1] > 0
