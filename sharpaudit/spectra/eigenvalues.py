"""Eigenvalues of a symmetric Hessian: all of them, those at the ends, or how many lie where.

    every        of the whole matrix: a product for each latent element
    ends         the largest and the smallest, by Lanczos with implicit restarts (scipy's eigsh, ARPACK)
    Density      of all, estimated from a few vectors by stochastic Lanczos quadrature (Ubaru, Chen and Saad, SIAM
                 J. Matrix Anal. Appl. 2017); what it counts has an interval

How many eigenvalues are not negative is told from the whole matrix or with an interval, never from the ends.

Shapes: P probes, M Lanczos steps, D latent elements.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from scipy.stats import t as student

from sharpaudit.errors import UserError
from sharpaudit.seeds import generator
from sharpaudit.spectra.hessian import Floats

Product = Callable[[Floats], Floats]
"""A symmetric matrix times each row of (K, D)."""


def every(matrix_DD: Floats) -> Floats:
    """All eigenvalues, rising."""
    found_D: Floats = np.linalg.eigvalsh(matrix_DD).astype(np.float64)
    return found_D


def ends(product: Product, size: int, k: int, tolerance: float = 1e-6) -> tuple[Floats, Floats]:
    """The k smallest, rising, and the k largest, falling; 2 k < D. tolerance: relative. Raises UserError."""
    if not 0 < 2 * k < size:
        raise UserError(f"{k} eigenvalues of each end of {size}: give 1 to {(size - 1) // 2}")
    operator = LinearOperator((size, size), matvec=lambda v_D: product(v_D.reshape(1, -1))[0], dtype=np.float64)
    start_D = generator("spectrum", "start").standard_normal(size)
    if not operator.matvec(start_D).any():
        return np.zeros(k), np.zeros(k)  # of a matrix of zeros; ARPACK has no word for it
    try:
        low, high = (eigsh(operator, k, which=which, v0=start_D, tol=tolerance)[0] for which in ("SA", "LA"))
    except ArpackError as error:
        raise UserError(f"{k} eigenvalues of an end: {error}; ask for fewer, or for the whole matrix") from error
    return np.sort(low), np.sort(high)[::-1]


@dataclass(frozen=True)
class Density:
    """A spectral density. nodes: Ritz values of each probe, (P, M). weights: their shares, which sum to 1, (P, M)."""

    size: int
    nodes_PM: Floats
    weights_PM: Floats

    def count(self, at_least: float) -> tuple[float, float, float]:
        """How many eigenvalues are at least that: the estimate, and its 95% interval over the probes (Student's t)."""
        counts_P = self.size * (self.weights_PM * (self.nodes_PM >= at_least)).sum(axis=1)
        return self._interval(counts_P, 0.0, float(self.size))

    def trace(self) -> tuple[float, float, float]:
        """Their sum, in the same way."""
        sums_P = self.size * (self.weights_PM * self.nodes_PM).sum(axis=1)
        return self._interval(sums_P, -math.inf, math.inf)

    def _interval(self, values_P: Floats, least: float, most: float) -> tuple[float, float, float]:
        # Shares sum to 1 up to rounding.
        n, mean = len(values_P), min(most, max(least, float(values_P.mean())))
        half = float(student.ppf(0.975, n - 1) * values_P.std(ddof=1) / math.sqrt(n))
        return mean, max(least, mean - half), min(most, mean + half)


def density(product: Product, size: int, probes: int, steps: int, seed: int = 0) -> Density:
    """Of random signs as probes, all in one batch, each with `steps` Lanczos steps. probes: at least 2."""
    if probes < 2 or not 0 < steps <= size:
        raise UserError(f"{probes} probes of {steps} steps: give at least 2 probes, and 1 to {size} steps")
    signs_PD = random_signs(seed, probes, size)
    alphas_PM, betas_PM = _lanczos(product, signs_PD / math.sqrt(size), steps)
    nodes, weights = [], []
    for alpha_M, beta_M in zip(alphas_PM, betas_PM, strict=True):
        tridiagonal_MM = np.diag(alpha_M) + np.diag(beta_M[:-1], 1) + np.diag(beta_M[:-1], -1)
        values_M, vectors_MM = np.linalg.eigh(tridiagonal_MM)
        nodes.append(values_M)
        weights.append(vectors_MM[0] ** 2)
    return Density(size, np.stack(nodes), np.stack(weights))


def random_signs(seed: int, probes: int, size: int) -> Floats:
    """Probes of independent elements of variance 1, with shape (P, D)."""
    signs_PD: Floats = generator(seed, "spectrum", "probes").choice([-1.0, 1.0], (probes, size))
    return signs_PD


def _lanczos(product: Product, q_PD: Floats, steps: int) -> tuple[Floats, Floats]:
    """Diagonals and side diagonals (P, M) of the matrix in each probe's Krylov space; each basis is kept orthogonal.

    Where a space is exhausted the rest of its diagonal repeats with side diagonals of zero, which has no weight.
    """
    basis = [q_PD]
    alphas_PM, betas_PM = np.zeros((len(q_PD), steps)), np.zeros((len(q_PD), steps))
    for m in range(steps):
        w_PD = product(basis[-1])
        alphas_PM[:, m] = (w_PD * basis[-1]).sum(axis=1)
        # Twice is enough (Parlett): once loses what rounding brings back.
        for _ in range(2):
            for old_PD in basis:
                w_PD = w_PD - (w_PD * old_PD).sum(axis=1, keepdims=True) * old_PD
        norms_P = np.linalg.norm(w_PD, axis=1)
        scale = np.abs(alphas_PM[:, : m + 1]).max(axis=1) + betas_PM[:, : m + 1].max(axis=1)
        alive_P = norms_P > 1e-10 * scale
        betas_PM[:, m] = np.where(alive_P, norms_P, 0.0)
        basis.append(np.where(alive_P[:, None], w_PD / np.where(alive_P, norms_P, 1.0)[:, None], 0.0))
    return alphas_PM, betas_PM
