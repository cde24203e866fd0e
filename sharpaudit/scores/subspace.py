"""What harmless prompts change at the first step: mean and principal directions of delta_eps over the fit prompts.

Shapes: N fit prompts, K directions, D latent elements.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from sharpaudit.errors import UserError

MIN_FIT = 10
PROMPTS_PER_DIRECTION = 5


@dataclass(frozen=True)
class Subspace:
    """mean (D,), orthonormal directions (K, D) and their share of the total variance (K,)."""

    mean_D: torch.Tensor
    directions_KD: torch.Tensor
    variance_shares_K: npt.NDArray[np.float64]


def fit_subspace(differences_ND: npt.NDArray[np.float32], components: int) -> Subspace:
    """The subspace of the fit prompts' delta_eps, by a thin SVD in float64.

    Each direction's largest element is positive, so that the sign is a matter of the data alone. Raises UserError
    for fewer than 10 fit prompts.
    """
    if len(differences_ND) < MIN_FIT:
        raise UserError(f"{len(differences_ND)} fit prompts could be evaluated; residual_gap needs at least {MIN_FIT}")
    rows_ND = differences_ND.astype(np.float64)
    mean_D = rows_ND.mean(axis=0)
    _, sizes, directions = np.linalg.svd(rows_ND - mean_D, full_matrices=False)
    k = max(1, min(components, len(rows_ND) // PROMPTS_PER_DIRECTION, directions.shape[1]))
    directions_KD = directions[:k]
    largest = np.take_along_axis(directions_KD, np.abs(directions_KD).argmax(axis=1)[:, None], axis=1)
    shares = sizes[:k] ** 2 / max(float((sizes**2).sum()), np.finfo(np.float64).tiny)
    return Subspace(
        torch.from_numpy(mean_D.astype(np.float32)),
        torch.from_numpy((directions_KD * np.sign(largest)).astype(np.float32)),
        shares,
    )
