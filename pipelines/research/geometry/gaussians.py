"""What the paper derives for single Gaussians, and by how much a mixture and Fisher and Rao's distance depart from it.

Of x ~ N(m_c, S_c) beside N(m, S), precisions P = S^-1 and P_c = S_c^-1, scores s and Hessians H of their log densities,
with Ds = s_c - s and DH = H_c - H (Jeon, Kim and No, ICML 2025, section 4 and appendix A):

    E|s_c|^2      = -tr H_c               of any density
    E|H_c s_c|^2  = -tr H_c^3             of a single Gaussian
    E|Ds|^2       = |P (m_c - m)|^2 + tr((P - P_c)^2 S_c)
    E|DH Ds|^2    = |(P - P_c) P (m_c - m)|^2 + tr((P - P_c)^4 S_c)

Shapes: N draws, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sharpaudit.seeds import generator

Floats = npt.NDArray[np.float64]
IDENTITIES = ("E|s|^2", "E|Hs|^2", "E|Ds|^2", "E|DH Ds|^2")
DIMENSIONS, PAIRS, DRAWS = 6, 24, 20_000
DISTANCES = np.linspace(0, 8, 41)
"""Between two components of variance 1."""
CHANGES = np.geomspace(0.01, 1.0, 21)


@dataclass(frozen=True)
class Gaussian:
    """mean: (D,). covariance: (D, D)."""

    mean: Floats
    covariance: Floats

    @property
    def precision(self) -> Floats:
        """P, the Hessian's negative."""
        return np.linalg.inv(self.covariance).astype(np.float64)


def random_pair(number: int) -> tuple[Gaussian, Gaussian]:
    """Conditional and unconditional: covariances that do not commute, means apart."""
    draw = generator("geometry", "pair", number)

    def one() -> Gaussian:
        turned, _ = np.linalg.qr(draw.standard_normal((DIMENSIONS, DIMENSIONS)))
        spread = np.exp(draw.uniform(-1, 1, DIMENSIONS))
        return Gaussian(draw.standard_normal(DIMENSIONS), turned * spread @ turned.T)

    return one(), one()


def closed(given: Gaussian, empty: Gaussian) -> dict[str, float]:
    """The right-hand sides."""
    P_c, P, apart = given.precision, empty.precision, given.mean - empty.mean
    between = P - P_c
    moved, turned = P @ apart, between @ P @ apart
    return {
        "E|s|^2": float(np.trace(P_c)),
        "E|Hs|^2": float(np.trace(P_c @ P_c @ P_c)),
        "E|Ds|^2": float(moved @ moved + np.trace(between @ between @ given.covariance)),
        "E|DH Ds|^2": float(turned @ turned + np.trace(np.linalg.matrix_power(between, 4) @ given.covariance)),
    }


def drawn(given: Gaussian, empty: Gaussian, number: int) -> dict[str, tuple[float, float]]:
    """The left-hand sides by drawing x, each with its standard error."""
    x_ND = generator("geometry", "draws", number).multivariate_normal(given.mean, given.covariance, DRAWS)
    P_c, P = given.precision, empty.precision
    s_c, s = -(x_ND - given.mean) @ P_c, -(x_ND - empty.mean) @ P
    sides = {"E|s|^2": s_c, "E|Hs|^2": s_c @ P_c, "E|Ds|^2": s_c - s, "E|DH Ds|^2": (s_c - s) @ (P - P_c)}
    squares = {name: np.square(side_ND).sum(axis=1) for name, side_ND in sides.items()}
    return {name: (float(each.mean()), float(each.std() / DRAWS**0.5)) for name, each in squares.items()}


def identities() -> Iterator[dict[str, object]]:
    """A row for each pair and identity: both sides, and how many standard errors lie between them."""
    for number in range(PAIRS):
        given, empty = random_pair(number)
        right = closed(given, empty)
        for name, (value, error) in drawn(given, empty, number).items():
            off = (value - right[name]) / error
            yield {
                "pair": number,
                "identity": name,
                "closed": right[name],
                "drawn": value,
                "standard errors apart": off,
            }


def mixtures() -> Iterator[dict[str, object]]:
    """A row for each distance of two components on a line: squares over the traces they would equal, by quadrature.

    The first is 1 for every density, the second for a single Gaussian alone.
    """
    x = np.linspace(-16, 16, 64_001)
    for distance in DISTANCES:
        parts = [np.exp(-0.5 * (x - sign * distance / 2) ** 2) / 2 / np.sqrt(2 * np.pi) for sign in (-1, 1)]
        p = parts[0] + parts[1]
        share = parts[1] / p
        s = -x + distance * (share - 0.5)
        H = -1 + distance**2 * share * (1 - share)

        def mean(values: Floats, p: Floats = p) -> float:
            return float(np.trapezoid(p * values, x))

        yield {
            "distance": float(distance),
            "E|s|^2 / -E tr H": mean(s**2) / -mean(H),
            "E|Hs|^2 / -E tr H^3": mean((H * s) ** 2) / -mean(H**3),
        }


def fisher_rao() -> Iterator[dict[str, object]]:
    """A row for each size of a change of variances or of the mean: squared distances over what stands for them.

    Between Gaussians of one mean and commuting covariances Fisher and Rao's squared distance is half the sum of squared
    logarithms of their variances' ratios; between those of one covariance 2 arccosh(1 + d^2 / 4)^2 with Mahalanobis' d.
    To second order E[Ds^T S Ds] is twice the first and equal to the second; E|Ds|^2 is so only where S = I.
    """
    draw = generator("geometry", "fisher-rao")
    variances_D, along_D = np.exp(draw.uniform(-1.5, 1.5, DIMENSIONS)), draw.uniform(-1, 1, DIMENSIONS)
    for change in CHANGES:
        ratios_D = np.exp(change * along_D)
        precision_D, given_D = 1 / variances_D, 1 / (variances_D * ratios_D)
        half = 0.5 * float(np.square(np.log(ratios_D)).sum())
        squared_D = np.square(precision_D - given_D) * variances_D * ratios_D
        yield _row("variances", float(change), 2 * half, float((variances_D * squared_D).sum()), float(squared_D.sum()))
        apart_D = change * along_D * np.sqrt(variances_D)
        mahalanobis = float((apart_D**2 / variances_D).sum())
        exact = 2 * np.arccosh(1 + mahalanobis / 4) ** 2
        yield _row("mean", float(change), float(exact), mahalanobis, float((apart_D**2 / variances_D**2).sum()))


def _row(kind: str, change: float, expected: float, whitened: float, plain: float) -> dict[str, object]:
    """expected: twice Fisher and Rao's squared distance of a change of variances, once that of a change of the mean."""
    return {
        "what changes": kind,
        "change": change,
        "expected": expected,
        "E[Ds^T S Ds] / expected": whitened / expected,
        "E|Ds|^2 / expected": plain / expected,
    }
