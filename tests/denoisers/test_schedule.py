"""Noise levels of every sort of model: what an output means, and the first step of a flow model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sharpaudit.denoisers.base import NoiseLevel
from sharpaudit.denoisers.schedule import flow_level, flow_time
from sharpaudit.errors import UserError
from sharpaudit.plugs import METRICS
from sharpaudit.scores.plan import places
from sharpaudit.scores.screen import ScreenConfig, differences, screen, unconditional_predictions
from sharpaudit.scores.subspace import fit_subspace
from sharpaudit.seeds import latents, screen_latent
from tests.support.flows import degenerate, flow
from tests.support.wrapped import analytic, exact_sharpness

LEVELS = {"epsilon": NoiseLevel(0.6, 0.8), "v_prediction": NoiseLevel(0.6, 0.8), "velocity": flow_level(0.7)}
CONFIG = ScreenConfig(2, 0, 0.01, 64)


@pytest.mark.parametrize("kind", LEVELS)
def test_the_output_that_is_true_gives_the_latent_that_is_true(kind):
    level = LEVELS[kind]
    x0, eps = latents([("x0",), ("eps",)], (3, 4, 4)).double()
    output = {"epsilon": eps, "v_prediction": level.a * eps - level.sigma * x0, "velocity": eps - x0}[kind]
    x = level.noised(x0, eps)
    torch.testing.assert_close(level.x0_hat(x, output, kind), x0)
    torch.testing.assert_close(level.eps(x, x0), eps)


def test_levels_at_the_ends():
    assert (flow_level(0), flow_level(1)) == (NoiseLevel(1, 0), NoiseLevel(0, 1))
    assert (flow_level(0).log_ratio, flow_level(1).log_ratio) == (math.inf, -math.inf)
    assert (flow_level(0).scale, flow_level(1).scale) == (1, 1)
    with pytest.raises(ValueError, match="not in"):
        flow_level(1.01)


def test_noise_alone_tells_nothing_of_the_latent_from_epsilon_but_all_from_velocity():
    x = latents([("x",)], (3, 4, 4))
    with pytest.raises(ValueError, match="says nothing"):
        flow_level(1).x0_hat(x, x, "epsilon")
    assert torch.equal(flow_level(1).x0_hat(x, x, "velocity"), torch.zeros_like(x))


def test_a_flow_has_the_signal_of_stable_diffusions_screen_at_929():
    model = analytic()
    for timestep, t in ((981, 0.929), (999, 0.936)):
        level = model.level(timestep)
        assert flow_time(level) == pytest.approx(t, abs=5e-4)
        assert flow_level(flow_time(level)).log_ratio == pytest.approx(level.log_ratio)


@pytest.mark.parametrize("t", [0.2, 0.9])
def test_the_toy_is_the_posterior_mean_of_its_mixture(t):
    """By the score, which is computed from its definition: x0_hat = (x + sigma^2 score) / a."""
    model, prompts, level = flow((0.5, 1.0)), ["planted 0", "a cat", "", "planted 1"], flow_level(t)
    x = latents([("x", i) for i in range(4)], model.latent_shape)
    score = model.mixture(prompts).score(x.double().flatten(1), level).reshape(x.shape)
    expected = (x + level.sigma**2 * score) / level.a
    torch.testing.assert_close(
        model.predict(x, t, model.encode(prompts)).x0_hat.double(), expected, rtol=1e-4, atol=1e-5
    )


def test_at_the_first_step_of_a_flow_the_prediction_does_not_depend_on_the_noise():
    model, prompts = flow((0.5, 1.0)), ["planted 0", "a cat", ""]
    x = latents([("x", i) for i in range(3)], model.latent_shape)
    one, other = (model.predict(z, 1.0, model.encode(prompts)).x0_hat for z in (x, -x))
    assert torch.equal(one, other)
    means = model.mixture(prompts)
    expected = (means.log_weights.exp()[:, :, None] * means.means).sum(dim=1).float().reshape(x.shape)
    torch.testing.assert_close(one, expected)


def values_of(model, prompts, names):
    """Means over seeds of metrics, by name."""
    metrics = [METRICS[name] for name in names]
    known = unconditional_predictions(model, CONFIG, places(metrics))
    fit = np.stack(differences(model, [f"fit {i}" for i in range(60)], known, CONFIG))
    found = screen(model, prompts, known, dict.fromkeys(CONFIG.seeds, fit_subspace(fit, 6)), CONFIG, metrics)
    return {name: np.array([row.mean(name) for row in found]) for name in names}


def test_a_screen_where_there_is_noise_alone_is_refused():
    model = degenerate(flow((1.0,)))
    with pytest.raises(UserError, match=r"at its time 1, where there is noise alone and every prompt scores zero"):
        values_of(model, ["planted 0"], ["noise_gap"])


def test_every_metric_of_a_flow_is_finite_and_tells_memorised_prompts():
    names = [name for name in METRICS if name != "attention_entropy"]
    model, n = flow((1.0, 0.95, 0.9)), 3
    found = values_of(model, [*(f"planted {i}" for i in range(n)), *(f"harmless {i}" for i in range(40))], names)
    assert all(np.isfinite(values).all() for values in found.values())
    assert found["residual_gap"][:n].min() > found["residual_gap"][n:].max()


def test_sharpness_of_a_flow_is_the_closed_form():
    model, prompts = flow((0.5, 0.9), (3, 2, 2)), ["planted 0", "a cat"]
    config = ScreenConfig(1, 0, 1.0, 4)
    known = unconditional_predictions(model, config)
    found = screen(model, prompts, known, {}, config, [METRICS["sharpness_jvp"]])
    level = model.level(model.first_timestep())
    x = level.scale * screen_latent(0, 0, model.latent_shape).expand(2, 3, 2, 2)
    expected = exact_sharpness(model, prompts, x, level)
    np.testing.assert_allclose([row.mean("sharpness_jvp") for row in found], expected, rtol=1e-4)
