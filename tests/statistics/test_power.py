"""Power without scores is that of audits in which every score is drawn."""

from __future__ import annotations

import numpy as np
import pytest

from sharpaudit.statistics.conformal import TOLERANCE, p_values
from sharpaudit.statistics.fdr import penalty, q_values
from sharpaudit.statistics.power import SHIFT, exceeding, power_by_p, power_by_q


def audited(n: int, m: int, memorised: int, draws: int) -> list[np.ndarray]:
    """p of m prompts, the memorised ones first, against n calibration prompts."""
    rng = np.random.default_rng(0)
    shift = SHIFT * (np.arange(m) < memorised)
    return [p_values(rng.standard_normal(m) + shift, rng.standard_normal(n)) for _ in range(draws)]


@pytest.mark.parametrize(("n", "alpha"), [(99, 0.01), (399, 0.01), (99, 0.005), (50, 0.2)])
def test_power_by_p_is_that_of_drawn_scores(n: int, alpha: float) -> None:
    found = np.array([(p[:200] <= alpha + TOLERANCE).mean() for p in audited(n, 200, 200, 400)])
    assert power_by_p(alpha, n) == pytest.approx(found.mean(), abs=4 * found.std() / 20 + 1e-9)


@pytest.mark.parametrize("procedure", ["benjamini-hochberg", "benjamini-yekutieli"])
@pytest.mark.parametrize(("n", "m", "memorised"), [(99, 500, 50), (499, 2000, 40), (199, 2000, 4)])
def test_power_by_q_is_that_of_drawn_scores(n: int, m: int, memorised: int, procedure: str) -> None:
    found = np.array(
        [(q_values(p, procedure)[:memorised] <= 0.1 + TOLERANCE).mean() for p in audited(n, m, memorised, 200)]  # type: ignore[arg-type]
    )
    # Both are means over draws, of 200 here and of 100 there.
    error = found.std() * np.sqrt(1 / 200 + 1 / 100)
    assert power_by_q(0.1, n, m, memorised, penalty(m, procedure)) == pytest.approx(  # type: ignore[arg-type]
        found.mean(), abs=4 * error + 1e-9
    )


def test_no_shift_is_no_power_but_that_of_chance() -> None:
    assert exceeding(np.array([0.0, 0.3, 1.0]), 0.0) == pytest.approx([0.0, 0.3, 1.0])
    assert power_by_p(0.01, 999, 0.0) == pytest.approx(0.01, rel=1e-3)


def test_the_least_size_is_not_enough() -> None:
    """Of 10,000 prompts 100 are memorised: from 999 calibration prompts on they can be found, most of them later."""
    assert power_by_q(0.1, 998, 10_000, 100) < power_by_q(0.1, 999, 10_000, 100) < 0.4
    assert power_by_q(0.1, 98, 10_000, 100) == 0
    assert power_by_q(0.1, 4999, 10_000, 100) > 0.7
