"""Single Gaussians: expectations of the metrics are traces of precisions (Jeon, Kim and No, ICML 2025, section 4).

With x ~ N(m, S) and x | c ~ N(m_c, S_c), precisions P and P_c, under x | c:

    E |s|^2 = -tr H = tr P                      E |H s|^2 = -tr H^3 = tr P^3       (of the unconditional under itself)
    E |Ds|^2 = |P (m_c - m)|^2 + tr((P - P_c)^2 S_c)
    E |DH Ds|^2 = |(P - P_c) P (m_c - m)|^2 + tr((P - P_c)^4 S_c)

Expectations of quadratic forms are exact sums over the points m_c +- sqrt(D) L e_i, L L^T = S_c: no sampling error.
"""

from __future__ import annotations

import pytest
import torch

from sharpaudit.denoisers.base import NoiseLevel
from sharpaudit.scores.hessian_trace import exact_trace
from sharpaudit.scores.noise_gap import noise_gap
from sharpaudit.scores.score_norm import score_norm
from sharpaudit.scores.sharpness import exact, finite_difference
from sharpaudit.seeds import generator

D = 12
LEVEL = NoiseLevel(0.6, 0.8)
EYE = torch.eye(D, dtype=torch.float64)


def gaussian(name):
    """Mean and covariance of the clean latent, float64."""
    draw = generator("identity", name)
    root = torch.from_numpy(draw.standard_normal((D, D))) / D**0.5
    return torch.from_numpy(draw.standard_normal(D)), root @ root.T


def noisy(mean, covariance):
    """Mean and covariance at LEVEL."""
    return LEVEL.a * mean, LEVEL.a**2 * covariance + LEVEL.sigma**2 * EYE


def points(mean, covariance):
    """2 D points of equal weight with this mean and covariance."""
    offsets = D**0.5 * torch.linalg.cholesky(covariance).T
    return torch.cat([mean + offsets, mean - offsets])


def x0_hat(mean, covariance):
    """E[x0 | x] as a function of x (B, D, 1, 1): prior mean, corrected."""
    at, spread = noisy(mean, covariance)
    gain = LEVEL.a * covariance @ torch.linalg.inv(spread)

    def of(x_BCHW):
        rows_BD = x_BCHW.flatten(1)
        return (mean.to(rows_BD) + (rows_BD - at.to(rows_BD)) @ gain.T.to(rows_BD)).reshape(x_BCHW.shape)

    return of


@pytest.fixture(scope="module")
def case():
    free, narrow = gaussian("free"), gaussian("narrow")
    (m, s), (m_c, s_c) = noisy(*free), noisy(*narrow)
    x = points(m_c, s_c).reshape(2 * D, D, 1, 1)
    conditional, unconditional = x0_hat(*narrow), x0_hat(*free)
    return {
        "x": x,
        "difference": lambda x: conditional(x) - unconditional(x),
        "p": torch.linalg.inv(s),
        "p_c": torch.linalg.inv(s_c),
        "s_c": s_c,
        "apart": m_c - m,
    }


def test_the_score_of_one_gaussian():
    """Against a model without any score, x0_hat = x / a, the difference of scores is the score itself."""
    m, s = noisy(*gaussian("free"))
    p, x, of = torch.linalg.inv(s), points(m, s).reshape(2 * D, D, 1, 1), x0_hat(*gaussian("free"))

    def difference(x):
        return of(x) - x / LEVEL.a

    assert score_norm(x, of(x), LEVEL).square().mean().item() == pytest.approx(p.trace().item(), rel=1e-6)
    found = exact(difference, x, difference(x), LEVEL).square().mean()
    assert found.item() == pytest.approx((p @ p @ p).trace().item(), rel=1e-3)
    assert exact_trace(difference, x[:2].float(), LEVEL).tolist() == pytest.approx([p.trace().item()] * 2, rel=1e-3)


def test_the_expected_square_of_the_noise_gap(case):
    p, p_c, shift = case["p"], case["p_c"], case["p"] @ case["apart"]
    expected = shift.square().sum() + ((p - p_c) @ (p - p_c) @ case["s_c"]).trace()
    found = (noise_gap(case["difference"](case["x"]), LEVEL) / LEVEL.sigma).square().mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize("route", ["exact", "finite"])
def test_the_expected_square_of_the_sharpness(case, route):
    p, p_c = case["p"], case["p_c"]
    apart = (p - p_c) @ p @ case["apart"]
    fourth = (p - p_c) @ (p - p_c) @ (p - p_c) @ (p - p_c)
    expected = apart.square().sum() + (fourth @ case["s_c"]).trace()
    delta = case["difference"](case["x"])
    if route == "exact":
        found = exact(case["difference"], case["x"], delta, LEVEL)
    else:
        found = finite_difference(case["difference"], case["x"], delta, LEVEL, 1.0)
    assert found.square().mean().item() == pytest.approx(expected.item(), rel=1e-3)


def test_the_trace_is_the_difference_of_precisions(case):
    x = case["x"][:2].float()
    found = exact_trace(case["difference"], x, LEVEL)
    expected = (case["p_c"] - case["p"]).trace().item()
    assert found.tolist() == pytest.approx([expected] * 2, rel=1e-3)
