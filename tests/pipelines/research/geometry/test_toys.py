"""The small models: their data, their training against a closed form, their Jacobians and samples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from pipelines.research.geometry import toys
from pipelines.research.geometry.toys import PLANE, REPEATED, Network, digits_data, hessians, plane_data, plane_hessian
from sharpaudit.seeds import generator


@pytest.fixture(scope="module")
def plane() -> Network:
    """Trained for a few seconds."""
    data, _ = plane_data()
    return toys.train(data, np.zeros(len(data), np.int64), replace(PLANE, width=64, steps=500, batch=256))


def test_the_plane_has_a_broad_mode_and_a_narrow_one() -> None:
    data, mode = plane_data()
    assert data.shape == (3_000, 2)
    assert 0.03 < mode.mean() < 0.07
    assert data[mode == 1].std(axis=0).max() < 0.1 * data[mode == 0].std(axis=0).min() + 0.02


def test_the_exact_hessian_is_that_of_the_log_density() -> None:
    a, sigma = 0.7, 0.5
    variances = a**2 * np.square(toys.SPREADS) + sigma**2
    weights = torch.log(torch.tensor(toys.SHARES, dtype=torch.float64)) - torch.log(torch.tensor(variances))

    def log_density(x: torch.Tensor) -> torch.Tensor:
        apart = ((x - a * torch.tensor(toys.MEANS, dtype=torch.float64)) ** 2).sum(-1)
        return torch.logsumexp(weights - apart / 2 / torch.tensor(variances), 0)

    for point in ([0.1, 0.2], [0.7, 0.5], [-2.0, 1.0]):
        x = torch.tensor(point, dtype=torch.float64)
        expected = torch.autograd.functional.hessian(log_density, x).numpy()
        np.testing.assert_allclose(plane_hessian(x.numpy()[None], a, sigma)[0], expected, rtol=1e-8)


def test_the_term_of_second_order_has_mean_zero_where_epsilon_is_exact() -> None:
    """Of Gaussian data with another variance in each dimension, whose epsilon is linear."""
    draw, a, sigma = generator("second order"), 0.6, 0.8
    spread = torch.tensor([0.3, 1.0, 2.0])
    eps, x0 = (torch.from_numpy(draw.standard_normal((200_000, 3), dtype=np.float32)) for _ in range(2))
    signs = torch.tensor([1.0, -1.0, 1.0]).expand_as(eps)
    slope = sigma / (a**2 * spread**2 + sigma**2)
    found = slope * (a * spread * x0 + sigma * eps)
    residual = toys.second_order(found, slope * signs, eps, signs, torch.tensor(sigma)).numpy()
    assert (np.abs(residual.mean(0)) < 4.5 * residual.std(0) / len(residual) ** 0.5).all()


def test_a_short_training_learns_curvature_where_samples_are(plane: Network) -> None:
    """Within a factor, at the middle of the noise: 500 of 6,000 steps."""
    t = toys.T // 2
    a, sigma = (float(part[t]) for part in toys.levels())
    at = a * np.array([toys.MEANS[0]])
    learned = np.linalg.eigvalsh(hessians(plane, torch.from_numpy(at).float(), t, toys.none_of(plane))[0])
    exact = np.linalg.eigvalsh(plane_hessian(at, a, sigma)[0])
    np.testing.assert_allclose(learned, exact, rtol=0.5)


def test_hessians_are_symmetric_and_those_of_a_finite_difference(plane: Network) -> None:
    x, t, h = torch.tensor([[0.3, -0.2]]), 300, 1e-2
    found = hessians(plane, x, t, 0)[0]
    assert (found == found.T).all()
    s = toys.score(plane, t, 0)
    J = np.stack([((s(x + h * e) - s(x - h * e)) / 2 / h)[0].numpy() for e in torch.eye(2)], axis=1)
    np.testing.assert_allclose(found, (J + J.T) / 2, rtol=2e-2, atol=2e-2 * np.abs(J).max())


def test_samples_walk_through_all_steps_and_land_in_the_data(plane: Network) -> None:
    walked = list(toys.sampled(plane, 400, toys.none_of(plane), 0.0, seed=0))
    assert [t for t, _ in walked[:3]] == [999, 997, 995]
    assert walked[-1][0] == -1
    assert len(walked) == toys.SAMPLING_STEPS + 1
    made = walked[-1][1].numpy()
    assert np.linalg.norm(made.mean(0) - np.array(toys.SHARES) @ np.array(toys.MEANS)) < 0.3


def test_one_nine_stands_many_times_among_all_threes() -> None:
    data, classes, nine = digits_data()
    assert data.shape[1] == 64
    assert data.min() == -1
    assert data.max() == 1
    nines = data[classes == toys.MEMORISED]
    assert len(nines) == REPEATED
    assert (nines == nine).all()
    threes = data[classes == toys.OTHERS]
    assert len(threes) > 150
    assert len(np.unique(threes, axis=0)) == len(threes)
