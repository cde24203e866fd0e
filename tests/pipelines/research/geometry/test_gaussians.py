"""Closed forms against draws, and how far a mixture and Fisher and Rao's distance are from them."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.research.geometry import gaussians
from pipelines.research.geometry.gaussians import Gaussian, closed, fisher_rao, identities, mixtures, random_pair


def test_the_identities_hold_of_single_gaussians() -> None:
    off = [float(row["standard errors apart"]) for row in identities()]  # type: ignore[arg-type]
    assert len(off) == gaussians.PAIRS * len(gaussians.IDENTITIES)
    assert np.abs(off).max() < 4.5
    assert 0.7 < np.std(off) < 1.4


def test_equal_means_and_commuting_covariances_give_the_paper_s_sums() -> None:
    p, p_c = np.array([0.5, 2.0, 3.0]), np.array([1.0, 2.0, 9.0])
    found = closed(Gaussian(np.zeros(3), np.diag(1 / p_c)), Gaussian(np.zeros(3), np.diag(1 / p)))
    assert found["E|Ds|^2"] == pytest.approx(((p - p_c) ** 2 / p_c).sum())
    assert found["E|DH Ds|^2"] == pytest.approx(((p - p_c) ** 4 / p_c).sum())


def test_pairs_do_not_commute_and_have_means_apart() -> None:
    given, empty = random_pair(0)
    between = given.covariance @ empty.covariance - empty.covariance @ given.covariance
    assert np.abs(between).max() > 0.1
    assert np.linalg.norm(given.mean - empty.mean) > 0.1


def test_a_mixture_keeps_the_first_identity_and_misses_the_second() -> None:
    rows = list(mixtures())
    first, second = ([float(row[name]) for row in rows] for name in list(rows[0])[1:])  # type: ignore[arg-type]
    np.testing.assert_allclose(first, 1, rtol=1e-6)
    assert second[0] == pytest.approx(1)
    assert max(second) > 3
    # Far apart each component is by itself again.
    assert second[-1] < 1.3


def test_whitened_by_s_the_difference_of_scores_is_the_distance_to_second_order() -> None:
    rows = list(fisher_rao())
    for kind in ("variances", "mean"):
        some = [row for row in rows if row["what changes"] == kind]
        whitened = [float(row["E[Ds^T S Ds] / expected"]) for row in some]  # type: ignore[arg-type]
        assert whitened[0] == pytest.approx(1, abs=1e-3)
        off = np.abs(np.array(whitened) - 1)
        assert off[-1] > 10 * off[0]
        assert abs(float(some[0]["E|Ds|^2 / expected"]) - 1) > 0.3  # type: ignore[arg-type]


def test_where_s_is_the_identity_both_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Same:
        def uniform(self, low: float, _high: float, size: int) -> np.ndarray:
            return np.zeros(size) if low == -1.5 else np.linspace(-1, 1, size)

    monkeypatch.setattr(gaussians, "generator", lambda *_: Same())
    for row in list(fisher_rao())[:2]:
        assert row["E|Ds|^2 / expected"] == pytest.approx(1, abs=1e-3)
