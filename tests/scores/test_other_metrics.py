"""The recorded metrics against closed forms of the analytic model, and by what must not change them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import hadamard

from sharpaudit.denoisers.base import NoiseLevel
from sharpaudit.errors import UserError
from sharpaudit.plugs import METRICS
from sharpaudit.scores.attention_entropy import attention_entropy
from sharpaudit.scores.base import ATTENTION
from sharpaudit.scores.hessian_trace import exact_trace, hutchinson
from sharpaudit.scores.mean_free_gap import mean_free_gap
from sharpaudit.scores.noise_gap import noise_gap
from sharpaudit.scores.norm_cosine import scaled_norm
from sharpaudit.scores.plan import places
from sharpaudit.scores.screen import ScreenConfig, screen, unconditional_predictions
from sharpaudit.scores.subspace import Subspace
from sharpaudit.seeds import generator, latents, screen_latent
from tests.support.wrapped import analytic

PROMPTS = ["planted 0", "a cat", "planted 1", ""]
STEP = 0.01


@pytest.fixture(scope="module")
def model():
    return analytic((0.5, 0.9))


@pytest.fixture(scope="module")
def found(model):
    """Every metric that the analytic model can give, by name, at seed 1 of 2."""
    metrics = [metric for metric in METRICS.of(METRICS.ours()) if ATTENTION not in metric.needs]
    config = ScreenConfig(2, 0, STEP, 3)
    known = unconditional_predictions(model, config, places(metrics))
    nothing = dict.fromkeys(config.seeds, Subspace(torch.zeros(192), torch.zeros(0, 192), None))
    rows = screen(model, PROMPTS, known, nothing, config, metrics)
    return {metric.name: np.array([row.seed_values[metric.name][1] for row in rows]) for metric in metrics}


def noise(model) -> torch.Tensor:
    return screen_latent(0, 1, model.latent_shape).expand(len(PROMPTS), *model.latent_shape)


def scores_at(model, x, t) -> tuple[torch.Tensor, torch.Tensor, NoiseLevel]:
    """Closed-form scores of the prompts and of the empty prompt, float64, (B, D), and the level."""
    level, rows = model.level(t), x.double().flatten(1)
    empty = model.mixture([""] * len(PROMPTS)).score(rows, level)
    return model.mixture(PROMPTS).score(rows, level), empty, level


def test_score_norm_is_that_of_the_closed_form(model, found):
    s_c, _, _ = scores_at(model, noise(model), 981)
    np.testing.assert_allclose(found["score_norm"], s_c.norm(dim=1), rtol=1e-5)


def test_one_step_is_how_far_an_euler_step_moves_pure_noise(model, found):
    """In the coordinates of the release: z = S n, and the guided denoiser's estimate of the picture."""
    level = model.level(999)
    largest = level.sigma / level.a
    s_c, s_0, _ = scores_at(model, level.sigma * noise(model), 999)
    z = largest * noise(model).double().flatten(1)
    guided = s_0 + 7.5 * (s_c - s_0)
    # Tweedie in z: the score there is a times that in x = a z.
    picture = z + largest**2 * level.a * guided
    np.testing.assert_allclose(found["one_step"], (z - picture).square().mean(dim=1), rtol=1e-4)


def test_norm_cosine_adds_the_angle_of_noise_predictions_late_in_the_schedule(model, found):
    s_c, s_0, level = scores_at(model, noise(model), 41)
    pixels = (len(PROMPTS), 3, -1)
    eps_0, delta = (-level.sigma * s_0).reshape(pixels), (-level.sigma * (s_c - s_0)).reshape(pixels)
    cosine = torch.cosine_similarity(eps_0, delta, dim=1, eps=1e-12).mean(dim=1)
    assert cosine[:3].abs().min() > 1e-3
    norm = found["noise_gap"] * (16_384 / np.prod(model.latent_shape)) ** 0.5
    np.testing.assert_allclose(found["norm_cosine"] - norm, 2 * cosine, rtol=1e-3, atol=2e-3)


def test_norm_cosine_is_the_published_one_at_its_size_and_the_same_for_a_tiled_latent():
    """What a metric says of a picture does not depend on how many such pictures stand side by side."""
    level = NoiseLevel(0.6, 0.8)
    delta = torch.from_numpy(generator("tiled").standard_normal((2, 4, 16, 16))).float()
    published = delta.repeat(1, 1, 4, 4)
    torch.testing.assert_close(scaled_norm(published, level), noise_gap(published, level))
    for tiles in ((1, 1), (2, 1), (6, 6)):
        tiled = scaled_norm(delta.repeat(1, 1, *tiles), level)
        torch.testing.assert_close(tiled, noise_gap(published, level), rtol=1e-5, atol=0)


def test_mean_free_gap_ignores_a_colour_and_only_that():
    level = NoiseLevel(0.6, 0.8)
    delta = torch.from_numpy(generator("delta").standard_normal((2, 3, 8, 8))).float()
    colour = torch.tensor([5.0, -3.0, 1.0])[:, None, None]
    torch.testing.assert_close(mean_free_gap(delta + colour, level), mean_free_gap(delta, level))
    centred = delta - delta.mean(dim=(2, 3), keepdim=True)
    torch.testing.assert_close(mean_free_gap(delta, level), noise_gap(centred, level))
    assert (mean_free_gap(delta, level) < noise_gap(delta, level)).all()


def test_the_trace_of_a_probe_is_the_closed_form_along_it(model, found):
    level, rows = model.level(981), noise(model).double().flatten(1)
    delta_h = model.mixture(PROMPTS).hessian(rows, level) - model.mixture([""] * len(PROMPTS)).hessian(rows, level)
    v = np.where(generator(0, "probe", 1).integers(2, size=(3, 8, 8)), 1.0, -1.0).ravel()
    expected = -np.einsum("i,bij,j->b", v, delta_h.numpy(), v)
    np.testing.assert_allclose(found["hessian_trace"], expected, rtol=0.02, atol=1e-3 * np.abs(expected).max())


def test_the_exact_trace_is_the_closed_form():
    model, prompts = analytic((0.5, 0.9), (3, 2, 2)), ["planted 0", "a cat", "planted 1"]
    conditioning, empty = model.encode(prompts), model.encode([""] * 3)
    x = latents([("test", i) for i in range(3)], model.latent_shape)
    level, rows = model.level(981), x.double().flatten(1)
    delta_h = model.mixture(prompts).hessian(rows, level) - model.mixture([""] * 3).hessian(rows, level)

    def difference(x):
        return model.predict(x, 981, conditioning).x0_hat - model.predict(x, 981, empty).x0_hat

    expected = -delta_h.diagonal(dim1=1, dim2=2).sum(dim=1)
    torch.testing.assert_close(exact_trace(difference, x, level).double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("step", [0.01, 3.0])
def test_signs_that_fill_the_space_give_the_trace_without_error(step):
    """The rows of a Hadamard matrix are probes whose mean is the trace itself, for a linear map."""
    matrix = torch.from_numpy(generator("matrix").standard_normal((16, 16))).float()
    moved = [torch.tensor(row, dtype=torch.float32).reshape(4, 2, 2) * step for row in hadamard(16)]
    level = NoiseLevel(0.6, 0.8)
    along = [hutchinson(v, (matrix @ v.flatten()).reshape(1, 4, 2, 2), level) for v in moved]
    expected = -(0.6 / 0.64) * matrix.diagonal().sum()
    torch.testing.assert_close(torch.stack(along).mean(), expected, rtol=1e-4, atol=1e-4)


def test_the_entropy_of_attention():
    even, certain = torch.full((1, 77), 1 / 77), torch.eye(77)[:1]
    assert attention_entropy(even)[0].item() == pytest.approx(math.log(77), rel=1e-5)
    assert attention_entropy(certain)[0].item() == 0
    half = (even + certain) / 2
    assert 0 < attention_entropy(half)[0] < math.log(77)


def test_a_model_without_attention_is_told_so(model):
    metrics = METRICS.of(["residual_gap", "attention_entropy"])
    config = ScreenConfig(1, 0, 1.0, 4)
    known = unconditional_predictions(model, config)
    with pytest.raises(UserError, match="attention_entropy reads cross-attention maps"):
        screen(model, PROMPTS, known, {}, config, metrics)


def test_the_empty_prompt_adds_no_curvature_and_no_gap(found):
    for name in ("noise_gap", "sharpness", "mean_free_gap", "hessian_trace", "norm_cosine"):
        assert found[name][PROMPTS.index("")] == 0, name
