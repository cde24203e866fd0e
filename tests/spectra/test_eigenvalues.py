"""Eigenvalues of matrices whose eigenvalues are known, by each of the three ways."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse.linalg import ArpackNoConvergence

from sharpaudit.errors import UserError
from sharpaudit.spectra import eigenvalues
from sharpaudit.spectra.eigenvalues import density, ends, every

SIZE = 200


def matrix(values, seed=0):
    """Symmetric, with these eigenvalues, in a random basis."""
    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(values), len(values))))[0]
    return (basis * values) @ basis.T


@pytest.fixture(scope="module")
def values():
    draws = np.random.default_rng(1)
    return np.sort(np.concatenate([-1 - 0.1 * draws.random(SIZE - 7), 0.5 + draws.random(7)]))


def test_all_and_the_ends_are_those_that_are_there(values):
    made = matrix(values)
    np.testing.assert_allclose(every(made), values, rtol=1e-10)
    low, high = ends(lambda v_KD: v_KD @ made, SIZE, 5)
    np.testing.assert_allclose(low, values[:5], rtol=1e-6)
    np.testing.assert_allclose(high, values[::-1][:5], rtol=1e-6)


def test_a_matrix_of_zeros_has_zeros():
    """As the difference where a memorised picture is all that either branch still sees."""
    low, high = ends(lambda v_KD: 0 * v_KD, SIZE, 3)
    assert (low.tolist(), high.tolist()) == ([0.0] * 3, [0.0] * 3)


def test_what_does_not_converge_is_one_line(values, monkeypatch):
    def gives_up(*arguments, **options):
        raise ArpackNoConvergence("no convergence (%d iterations, %d of 5)", np.zeros(2), np.zeros((SIZE, 2)))

    monkeypatch.setattr(eigenvalues, "eigsh", gives_up)
    with pytest.raises(UserError, match=r"5 eigenvalues of an end: .*; ask for fewer, or for the whole matrix"):
        ends(lambda v_KD: v_KD, SIZE, 5)


@pytest.mark.parametrize("k", [0, SIZE // 2])
def test_more_ends_than_there_are_are_refused(values, k):
    with pytest.raises(UserError, match=f"{k} eigenvalues of each end of {SIZE}: give 1 to 99"):
        ends(lambda v_KD: v_KD, SIZE, k)


def test_a_density_counts_and_adds_up_with_an_interval(values):
    made = matrix(values)
    found = density(lambda v_KD: v_KD @ made, SIZE, probes=30, steps=40)
    np.testing.assert_allclose(found.weights_PM.sum(axis=1), 1)
    for (mean, low, high), truth in ((found.count(0.0), 7), (found.count(-2.0), SIZE), (found.trace(), values.sum())):
        assert low <= truth <= high or truth == pytest.approx(mean)
        assert low <= mean <= high
    assert found.count(2.0)[0] == 0


def test_its_interval_holds_as_often_as_it_says(values):
    made = matrix(values)
    counts = [density(lambda v_KD: v_KD @ made, SIZE, 8, 30, seed).count(0.0) for seed in range(100)]
    assert np.mean([low <= 7 <= high for _, low, high in counts]) > 0.88
    assert np.mean([high - low for _, low, high in counts]) < 14


def test_a_probe_whose_space_is_small_is_no_failure():
    """Two eigenvalues: after two steps nothing is left, and the density is exact."""
    made = matrix(np.repeat([-1.0, 2.0], 20))
    found = density(lambda v_KD: v_KD @ made, 40, probes=12, steps=10)
    shares = (
        found.weights_PM * (np.abs(found.nodes_PM - 2) < 1e-8),
        found.weights_PM * (np.abs(found.nodes_PM + 1) < 1e-8),
    )
    np.testing.assert_allclose(sum(share.sum(axis=1) for share in shares), 1)


def test_probes_and_steps_that_say_nothing_are_refused():
    for probes, steps in ((1, 5), (4, 0), (4, 41)):
        with pytest.raises(UserError, match="give at least 2 probes, and 1 to 40 steps"):
            density(lambda v_KD: v_KD, 40, probes, steps)
