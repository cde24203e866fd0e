"""Hessians against the closed form of a mixture; of a network, products against its whole matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sharpaudit.denoisers.families.stable_diffusion.model import DiffusionDenoiser
from sharpaudit.denoisers.sampling import DDIM, Guided, follow, times
from sharpaudit.errors import UserError
from sharpaudit.seeds import latents
from sharpaudit.spectra.hessian import BRANCHES, Curvature, at_step
from tests.support.tiny_models import write_model
from tests.support.wrapped import analytic

PROMPT, SHAPE, T = "planted 0", (3, 2, 2), 501


@pytest.fixture(scope="module")
def model():
    return analytic((0.5, 0.9), SHAPE)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return DiffusionDenoiser(write_model(tmp_path_factory.mktemp("tiny") / "model"), torch.device("cpu"), torch.float32)


def placed(model, dtype=torch.float32, t=T, batch_size=5):
    x_CHW = latents([("spectra", "x")], model.latent_shape)[0].to(dtype)
    with torch.no_grad():
        return Curvature(model, x_CHW, t, model.encode([PROMPT]), model.unconditional(), batch_size)


def closed_form(model, curvature):
    """The Hessian of each branch from the mixture's own formula, (D, D)."""
    x_1D, level = curvature.x_CHW.double().reshape(1, -1), model.level(curvature.t)
    given, empty = (model.mixture([prompt]).hessian(x_1D, level)[0].numpy() for prompt in (PROMPT, ""))
    return dict(zip(BRANCHES, (given, empty, given - empty), strict=True))


def away(found, expected):
    """The largest deviation, as a share of the largest element."""
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
@pytest.mark.parametrize("t", [1, 201, 501, 981])
def test_of_a_mixture_it_is_the_closed_form(model, dtype, tolerance, t):
    curvature = placed(model, dtype, t)
    expected, found = closed_form(model, curvature), curvature.matrices()
    v_KD = np.random.default_rng(0).standard_normal((3, curvature.size))
    for branch in BRANCHES:
        matrix_DD, asymmetry = found[branch]
        scale = np.abs(expected["conditional"]).max()
        assert np.abs(matrix_DD - expected[branch]).max() < tolerance * scale
        assert np.abs(curvature.product(branch, v_KD) - v_KD @ expected[branch]).max() < 10 * tolerance * scale
        assert asymmetry < 1e-3 or dtype == torch.float32


def test_of_a_network_products_are_those_of_the_symmetric_part(network):
    curvature = placed(network, batch_size=48)
    found = curvature.matrices()
    v_KD = np.random.default_rng(1).standard_normal((4, curvature.size))
    for branch in BRANCHES:
        matrix_DD, asymmetry = found[branch]
        np.testing.assert_allclose(matrix_DD, matrix_DD.T)
        assert away(curvature.product(branch, v_KD), v_KD @ matrix_DD) < 1e-4
        # A network of random weights is far from the gradient of anything.
        assert asymmetry > 0.01
        estimate = curvature.asymmetry(branch, np.random.default_rng(2).standard_normal((64, curvature.size)))
        assert estimate == pytest.approx(asymmetry, rel=0.25)


def test_the_difference_is_what_the_prompt_adds(network):
    curvature = placed(network)
    v_KD = np.random.default_rng(3).standard_normal((2, curvature.size))
    given, empty, added = (curvature.product(branch, v_KD) for branch in BRANCHES)
    np.testing.assert_allclose(added, given - empty, atol=1e-6 * np.abs(given).max())


def test_a_step_is_where_the_sampler_is_before_it(model):
    x_T = latents([("spectra", "noise")], SHAPE)[0]
    seen = []
    with torch.no_grad():
        guided = Guided(model, model.encode([PROMPT]), model.unconditional(), 3.0)
        follow(DDIM.steps(guided, x_T[None], times(model, 10)), lambda step: seen.append((step.t, step.x[0].clone())))
    for number in (1, 4, 10):
        found = at_step(model, PROMPT, x_T, number, 10, 3.0)
        assert found.t == seen[number - 1][0]
        assert torch.equal(found.x_CHW, seen[number - 1][1])
    assert torch.equal(at_step(model, PROMPT, x_T, 1, 10, 3.0).x_CHW, x_T)
    with pytest.raises(UserError, match="step 11 of 10: give 1 to 10"):
        at_step(model, PROMPT, x_T, 11, 10, 3.0)
