"""The noise gap is that of the noise predictions and of the scores."""

from __future__ import annotations

import pytest
import torch

from sharpaudit.scores.noise_gap import delta_eps, noise_gap
from sharpaudit.seeds import latents
from tests.support.wrapped import analytic

PROMPTS = ["a cat", "planted 0"]


@pytest.mark.parametrize("t", [981, 501, 101])
def test_it_is_the_distance_of_the_scores_times_sigma(t):
    model = analytic((0.9,))
    level, x = model.level(t), latents([("test", i) for i in range(2)], model.latent_shape)
    x0_c, x0_0 = (model.predict(x, t, model.encode(p)).x0_hat for p in (PROMPTS, ["", ""]))
    rows = x.double().flatten(1)
    delta_s = model.mixture(PROMPTS).score(rows, level) - model.mixture(["", ""]).score(rows, level)
    torch.testing.assert_close(delta_eps(x0_c - x0_0, level).double(), -level.sigma * delta_s, rtol=1e-4, atol=1e-5)
    expected = level.sigma * delta_s.norm(dim=1)
    torch.testing.assert_close(noise_gap(x0_c - x0_0, level).double(), expected, rtol=1e-5, atol=0)


def test_no_difference_is_no_gap():
    assert noise_gap(torch.zeros(2, 3, 4, 4), analytic().level(981)).tolist() == [0, 0]
