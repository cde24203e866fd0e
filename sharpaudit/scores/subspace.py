"""What harmless prompts change at the first step: mean and principal directions of delta_eps over the fit prompts.

Every seed has its own: the noise decides where in the latent a caption can change anything.

Shapes: N fit prompts, K directions, D latent elements, C candidates for K.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from sharpaudit.config import MIN_FIT
from sharpaudit.errors import UserError

ENOUGH_FIT = 400
"""Fewer lose true positives: `sharpaudit bench screens` measures what 100 to 400 of 1,000 fit prompts cost."""
PROMPTS_PER_DIRECTION = 5
CANDIDATES = (1, 2, 5, 10, 20, 50, 100, 200)
FOLDS = 5
OUTLYING, TRIM_K = 2.5, 20
"""Robust standard deviations of log ||R||^2 beyond which a fit prompt teaches nothing, and the directions for that."""
EXACT_ELEMENTS = 20_000_000
"""Of the matrix of differences: 1,000 prompts of 4 x 64 x 64 latents still take the thin SVD."""
COLUMNS = 16_384
TINY = float(np.finfo(np.float64).tiny)
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.float32] | npt.NDArray[np.float64]


@dataclass(frozen=True)
class Subspace:
    """mean (D,), orthonormal directions (K, D) and their share of the total variance (K,).

    n_fit: fit prompts that it was learned from.
    """

    mean_D: torch.Tensor
    directions_KD: torch.Tensor
    variance_shares_K: npt.NDArray[np.float64]
    n_fit: int = 0


NOTHING = Subspace(torch.zeros(0), torch.zeros(0, 0), np.zeros(0))
"""For a screen whose metrics ask for no subspace."""
Subspaces = Mapping[int, Subspace]
"""By the number of the seed."""


def fit_subspace(
    differences_ND: npt.NDArray[np.float32], components: int | str, families: Sequence[str] | None = None
) -> Subspace:
    """The subspace of the fit prompts' delta_eps, in float64.

    It is learned from those that `typical` keeps. components: K, never more than a fifth of them; "auto" leaves it to
    `choose_components`. Both keep families together. Raises UserError for fewer than 10 fit prompts.
    """
    if len(differences_ND) < MIN_FIT:
        raise UserError(f"{len(differences_ND)} fit prompts could be evaluated; residual_gap needs at least {MIN_FIT}")
    kept_N = typical(differences_ND, families)
    n_kept = int(kept_N.sum())
    asked = choose_components(differences_ND, families, kept_N) if components == "auto" else int(components)
    k = _allowed(asked, n_kept, differences_ND.shape[1])
    mean_D, directions_KD, shares_K = principal_directions(differences_ND, k, kept_N)
    mean, directions = (torch.from_numpy(found.astype(np.float32)) for found in (mean_D, directions_KD))
    return Subspace(mean, directions, shares_K, n_kept)


def typical(differences_ND: Rows, families: Sequence[str] | None = None) -> Mask:
    """Which fit prompts look like the others, with shape (N,).

    A memorised prompt among them would teach that what it changes is harmless, and so hide itself. Measured as a
    stranger it stands out, and is left out: of harmless prompts those go with it whose log ||R||^2 lies more than
    OUTLYING robust standard deviations above the median, .6% were it normal. Of fewer than 20 prompts, and of a single
    family, all are kept.
    """
    n, d = differences_ND.shape
    if n < 2 * MIN_FIT or (families is not None and len(set(families)) == 1):
        return np.ones(n, dtype=bool)
    k = _allowed(TRIM_K, n - -(-n // FOLDS), d)
    energy_N = np.log(np.maximum(energy_as_strangers(differences_ND, [k], families)[0], TINY))
    above_N = energy_N - np.median(energy_N)
    deviation = 1.4826 * np.median(np.abs(above_N))
    kept_N: Mask = above_N <= OUTLYING * deviation if deviation > 0 else np.ones(n, dtype=bool)
    return kept_N


def principal_directions(rows_ND: Rows, k: int, kept_N: Mask | None = None) -> tuple[Floats, Floats, Floats]:
    """Mean (D,), the first k principal directions (K, D) and their share of the total variance (K,), in float64.

    kept: the rows that count, all without it. Each direction's largest element is positive, so that the sign is a
    matter of the data alone. Up to EXACT_ELEMENTS by a thin SVD; above by the eigenvectors of the N x N Gram matrix: as
    exact as a randomised SVD is approximate, and no larger. Beside the rows it needs some 3 N^2 + K D numbers and
    three blocks of columns: 1,000 prompts of 16 x 128 x 128 latents (1 GiB of float32) take 0.4 GiB more for 50
    directions, 0.7 GiB for 200.
    """
    if rows_ND.size <= EXACT_ELEMENTS:
        rows_ND = rows_ND if kept_N is None else rows_ND[kept_N]
        mean_D = rows_ND.mean(axis=0, dtype=np.float64)
        centred_ND = rows_ND.astype(np.float64) - mean_D
        _, sizes, directions = np.linalg.svd(centred_ND, full_matrices=False)
        directions_KD, variances = directions[:k].copy(), sizes**2
    else:
        values, vectors = np.linalg.eigh(_centred(gram(rows_ND, kept_N)))
        variances, weights_NK = np.maximum(values[::-1], 0), vectors[:, ::-1][:, :k]
        mean_D, directions_KD = np.empty(rows_ND.shape[1]), np.empty((weights_NK.shape[1], rows_ND.shape[1]))
        for columns, block in _blocks(rows_ND, kept_N):
            mean_D[columns] = block.mean(axis=0)
            # Columns of weights sum to zero, so the mean of the rows drops out.
            directions_KD[:, columns] = weights_NK.T @ block
    for direction_D in directions_KD:  # in place, one by one: together they may be the largest array of all
        direction_D *= np.sign(direction_D[np.abs(direction_D).argmax()]) / max(np.linalg.norm(direction_D), TINY)
    return mean_D, directions_KD, variances[:k] / max(float(variances.sum()), TINY)


def choose_components(differences_ND: Rows, families: Sequence[str] | None = None, kept_N: Mask | None = None) -> int:
    """K: as many directions as the fit prompts allow, of CANDIDATES, or fewer where more leave no less noise.

    Allowed are one for five prompts of four fifths of the fit set. Fewer are taken where `noise_left` ends to fall
    before: the smallest K within a standard error of the least. Of a model whose harmless prompts move in few
    directions and scatter evenly beyond, that is their number; on the lab it falls on past 600, so the limit decides
    there (`sharpaudit bench directions`). kept: the rows that count, all without it.
    """
    n, d = len(differences_ND) if kept_N is None else int(kept_N.sum()), differences_ND.shape[1]
    allowed = [k for k in CANDIDATES if k <= _allowed(max(CANDIDATES), n - -(-n // FOLDS), d)]
    noise_C = noise_left(energy_as_strangers(differences_ND, allowed, families, kept_N), allowed, d)
    # The relative standard error of a standard deviation of n values, were they normal.
    line = noise_C.min() * (1 + 1 / np.sqrt(2 * (n - 1)))
    return allowed[int(np.flatnonzero(noise_C <= line)[0])]


def noise_left(left_CN: Floats, ks: Sequence[int], d: int) -> Floats:
    """The scatter of harmless prompts' ||R||^2 for what k directions leave of a signal, with shape (C,).

    left: of strangers, as `energy_as_strangers` gives it. A signal of unknown direction keeps the share (d - k) / d of
    its energy.
    """
    noise_C: Floats = left_CN.std(axis=1, ddof=1) / (1 - np.array(ks) / d)
    return noise_C


def energy_as_strangers(
    differences_ND: Rows, ks: Sequence[int], families: Sequence[str] | None = None, kept_N: Mask | None = None
) -> Floats:
    """||R||^2 of each fit prompt on the first k directions of others, for each k, with shape (C, N).

    Every fifth of the families is measured on the other four fifths: a prompt looks too small on directions that it,
    or one like it, has taught. families: of each row; without it each is one. kept: the N rows that count, all without
    it. Raises UserError for a single family.
    """
    gram_NN = gram(differences_ND, kept_N)
    names = np.arange(len(differences_ND)) if families is None else np.array(families)
    names = names if kept_N is None else names[kept_N]
    fold_N = np.unique(names, return_inverse=True)[1] % FOLDS
    if not fold_N.any():
        raise UserError(f"all {len(fold_N)} fit prompts are one family; give harmless prompts of several")
    left_CN = np.empty((len(ks), len(gram_NN)))
    for fold in np.unique(fold_N):
        held = fold_N == fold
        left_CN[:, held] = _energy_left(gram_NN, held, ks)
    return left_CN


def _energy_left(gram_NN: Floats, held_N: npt.NDArray[np.bool_], ks: Sequence[int]) -> Floats:
    """||R||^2 of the held rows on the first k directions of the others, for each k, from inner products alone.

    Few others, where one family holds most of the rows, have fewer directions than rows.
    """
    kept = ~held_N
    inner = gram_NN[np.ix_(kept, kept)]
    values, vectors = np.linalg.eigh(_centred(inner))
    across = gram_NN[np.ix_(held_N, kept)]
    # Less the mean of the kept rows on both sides.
    centred = across - across.mean(axis=1, keepdims=True) - inner.mean(axis=0) + inner.mean()
    whole = np.diag(gram_NN)[held_N] - 2 * across.mean(axis=1) + inner.mean()
    most = min(max(ks), int(kept.sum()) - 1)
    if most < 1:
        return np.stack([whole] * len(ks))
    top = slice(None, -most - 1, -1)
    taken = np.cumsum(np.square(centred @ vectors[:, top]) / np.maximum(values[top], TINY), axis=1)
    return np.stack([whole - taken[:, min(k, most) - 1] for k in ks])


def gram(rows_ND: Rows, kept_N: Mask | None = None) -> Floats:
    """Inner products of all rows, or of those kept, in float64, with shape (N, N), a block of columns at a time."""
    n = len(rows_ND) if kept_N is None else int(kept_N.sum())
    total_NN = np.zeros((n, n))
    for _, block in _blocks(rows_ND, kept_N):
        total_NN += block @ block.T
    return total_NN


def _blocks(rows_ND: Rows, kept_N: Mask | None) -> Iterator[tuple[slice, Floats]]:
    """Blocks of columns in float64 with their place. A copy of the rows that are kept would be as large as all."""
    for first in range(0, rows_ND.shape[1], COLUMNS):
        columns = slice(first, first + COLUMNS)
        block = rows_ND[:, columns]
        yield columns, (block if kept_N is None else block[kept_N]).astype(np.float64)


def _centred(gram_NN: Floats) -> Floats:
    """The inner products of the rows less their mean."""
    mean_N = gram_NN.mean(axis=0)
    centred_NN: Floats = gram_NN - mean_N[:, None] - mean_N[None, :] + mean_N.mean()
    return centred_NN


def _allowed(k: int, n: int, d: int) -> int:
    return max(1, min(k, n // PROMPTS_PER_DIRECTION, d))
