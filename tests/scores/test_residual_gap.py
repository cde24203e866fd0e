"""The residual gap: projections by another route, and why the fit prompts may serve nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sharpaudit.errors import UserError
from sharpaudit.scores.residual_gap import residual_gap
from sharpaudit.scores.subspace import fit_subspace
from sharpaudit.seeds import generator

D = 60


def rows(n, *names, d=D):
    """Differences that move a long way in 4 directions and a little in all others, about a mean."""
    common = generator("test", "directions")
    directions, mean = common.standard_normal((4, d)), common.standard_normal(d)
    draw = generator("test", *names)
    return (mean + 3 * draw.standard_normal((n, 4)) @ directions + draw.standard_normal((n, d))).astype(np.float32)


@pytest.fixture(scope="module")
def subspace():
    return fit_subspace(rows(200, "fit"), 4)


def gap(values, subspace):
    return residual_gap(torch.from_numpy(np.asarray(values, dtype=np.float32)), subspace).numpy()


def test_directions_are_orthonormal(subspace):
    v = subspace.directions_KD.double()
    torch.testing.assert_close(v @ v.T, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-6)


def test_a_vector_inside_the_subspace_has_no_residual(subspace):
    mix = 10 * generator("test", "mix").standard_normal((5, 4))
    inside = subspace.mean_D.numpy() + mix @ subspace.directions_KD.numpy()
    assert np.abs(gap(inside, subspace)).max() < 1e-4
    assert gap(subspace.mean_D[None], subspace)[0] == 0


def test_moving_inside_the_subspace_changes_nothing_and_outside_adds_up(subspace):
    values = rows(5, "x")
    moved = values + 7 * subspace.directions_KD[2].numpy()
    np.testing.assert_allclose(gap(moved, subspace), gap(values, subspace), rtol=1e-5)
    basis = np.linalg.svd(subspace.directions_KD.numpy().astype(np.float64))[2]
    outside = subspace.mean_D.numpy() + 2.5 * basis[-1]
    assert gap(outside[None], subspace)[0] == pytest.approx(2.5, rel=1e-5)


def test_it_is_the_distance_to_the_nearest_point_of_the_subspace(subspace):
    """By least squares, which knows of no projection."""
    values = rows(6, "y")
    centred = (values - subspace.mean_D.numpy()).astype(np.float64)
    v = subspace.directions_KD.numpy().astype(np.float64)
    nearest = np.linalg.lstsq(v.T, centred.T, rcond=None)[0]
    np.testing.assert_allclose(gap(values, subspace), np.linalg.norm(centred.T - v.T @ nearest, axis=0), rtol=1e-5)


def test_the_directions_found_are_those_of_the_largest_variance(subspace):
    shares = subspace.variance_shares_K
    assert (np.diff(shares) <= 0).all()
    assert 0.9 < shares.sum() <= 1
    centred = rows(200, "fit").astype(np.float64)
    centred -= centred.mean(axis=0)
    along = ((centred @ subspace.directions_KD.numpy().T) ** 2).sum(axis=0) / (centred**2).sum()
    np.testing.assert_allclose(along, shares, rtol=1e-5)


def test_signs_do_not_depend_on_the_order_of_the_prompts(subspace):
    values = rows(200, "fit")
    other = fit_subspace(values[generator("test", "order").permutation(200)], 4)
    torch.testing.assert_close(other.directions_KD, subspace.directions_KD, rtol=0, atol=1e-5)
    for direction in subspace.directions_KD:
        assert direction[direction.abs().argmax()] > 0
    # Mirrored differences have the mirrored mean and the same directions.
    mirrored = fit_subspace(-values, 4)
    torch.testing.assert_close(mirrored.directions_KD, subspace.directions_KD, rtol=0, atol=1e-5)


@settings(deadline=None, max_examples=20)
@given(st.integers(10, 80), st.integers(1, 40), st.integers(1, 12))
def test_there_are_as_many_directions_as_asked_for_but_few_per_prompt(n, components, d):
    found = fit_subspace(generator("test", n).standard_normal((n, d)).astype(np.float32), components)
    # Of those that look like others; one that looks like none teaches nothing.
    assert 0.8 * n <= found.n_fit <= n
    assert found.directions_KD.shape == (min(components, found.n_fit // 5, d), d)


def test_too_few_fit_prompts_are_refused():
    assert len(fit_subspace(rows(10, "few"), 4).directions_KD) == 2
    with pytest.raises(UserError, match=r"9 fit prompts.*at least 10"):
        fit_subspace(rows(9, "few"), 4)


def test_identical_fit_prompts_give_no_nan():
    found = fit_subspace(np.ones((10, D), np.float32), 3)
    assert np.isfinite(found.variance_shares_K).all()
    assert gap(np.ones((1, D)), found)[0] == 0


def test_a_row_has_the_same_bits_alone_and_in_a_batch(subspace):
    values = rows(37, "bits")
    assert np.array_equal(gap(values, subspace), np.concatenate([gap(row[None], subspace) for row in values]))


def false_positive_rate(subspace, calibration, alpha=0.01):
    """Share of harmless prompts, seen by nobody before, with a conformal p-value of at most alpha."""
    calibrated, fresh = gap(calibration, subspace), gap(rows(2000, "fresh"), subspace)
    p = (1 + (calibrated[:, None] >= fresh).sum(axis=0)) / (len(calibrated) + 1)
    return float((p <= alpha).mean())


def test_calibrating_on_the_fit_prompts_breaks_the_error_rate_and_disjoint_prompts_keep_it():
    fit = rows(199, "overlap")
    subspace = fit_subspace(fit, 20)
    assert false_positive_rate(subspace, fit) > 0.05
    assert false_positive_rate(subspace, rows(1999, "apart")) < 0.02
