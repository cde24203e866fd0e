"""Residual gap: the part of the noise gap that harmless prompts cannot explain.

At the first step delta_eps is close to -(a / sigma) (E[x0 | c] - E[x0]). Harmless prompts move it inside a
low-dimensional subspace: what captions in general can change. A memorised picture brings detail that lies
outside. With mean m and first k principal directions V (K, D) of delta_eps over the fit prompts,

    residual_gap = || (delta_eps - m) - V^T V (delta_eps - m) ||_2.

Larger means more memorised. The fit prompts must be used for nothing else: scored on its own fit set, a prompt
looks too small, and p-values calibrated there would not hold. k is the number asked for, but never more than a
fifth of the fit prompts.

Shapes: N fit prompts, B prompts, K directions, D latent elements.
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


def residual_gap(delta_eps_BD: torch.Tensor, subspace: Subspace) -> torch.Tensor:
    """Norm of what the subspace leaves, with shape (B,).

    In float64 and one direction at a time: a matrix product's rounding would depend on the batch.
    """
    directions_KD = subspace.directions_KD.to(delta_eps_BD.device, torch.float64)
    centred_BD = delta_eps_BD.to(torch.float64) - subspace.mean_D.to(delta_eps_BD.device, torch.float64)
    rest_BD = centred_BD
    for direction_D in directions_KD:
        rest_BD = rest_BD - (centred_BD * direction_D).sum(dim=1, keepdim=True) * direction_D
    norm: torch.Tensor = torch.linalg.vector_norm(rest_BD, dim=1)
    return norm
