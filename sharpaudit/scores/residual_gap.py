"""Residual gap: the part of the noise gap that harmless prompts cannot explain.

At the first step delta_eps is close to -(a / sigma) (E[x0 | c] - E[x0]). Harmless prompts move it mostly along few
directions: what captions in general can change. On the lab's model 20 of 1,024 hold 97% of what they change and 100
hold 99%, with a tail that has no end (`sharpaudit bench directions`). A memorised picture brings detail that lies
outside. With mean m and first k principal directions V (K, D) of delta_eps over the fit prompts at the same seed,

    residual_gap = || (delta_eps - m) - V^T V (delta_eps - m) ||_2.

Larger means more memorised. What harmless prompts change depends on the noise: directions of one seed explain less at
another. The fit prompts must be used for nothing else: scored on its own fit set, a prompt
looks too small, and p-values calibrated there would not hold. Fit prompts that look like no other teach nothing
(`subspace.typical`), and k is the number asked for, but never more than a fifth of the others; "auto" is
`subspace.choose_components`.

Shapes: B prompts, K directions, D latent elements.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from sharpaudit.scores.base import FIRST, Evidence, Metric, at
from sharpaudit.scores.noise_gap import delta_eps
from sharpaudit.scores.subspace import Subspace, energy_as_strangers


def residual_gap(delta_eps_BD: torch.Tensor, subspace: Subspace) -> torch.Tensor:
    """Norm of what the subspace leaves, with shape (B,).

    In float64 and one direction at a time: a matrix product's rounding would depend on the batch.
    """
    directions_KD = subspace.directions_KD.to(delta_eps_BD.device)
    centred_BD = delta_eps_BD.to(torch.float64) - subspace.mean_D.to(delta_eps_BD.device, torch.float64)
    rest_BD = centred_BD
    for direction in directions_KD:
        direction_D = direction.to(torch.float64)  # one by one: of large latents all together may take a GiB
        rest_BD = rest_BD - (centred_BD * direction_D).sum(dim=1, keepdim=True) * direction_D
    norm: torch.Tensor = torch.linalg.vector_norm(rest_BD, dim=1)
    return norm


def _values(evidence: Evidence) -> torch.Tensor:
    return residual_gap(delta_eps(evidence.delta_x0(), evidence.level()), evidence.subspace)


def _as_strangers(
    differences_ND: npt.NDArray[np.float32], components: int, families: Sequence[str] | None
) -> npt.NDArray[np.float64]:
    # Rounding may leave a vector inside the subspace a little below zero.
    energy_N: npt.NDArray[np.float64] = np.maximum(energy_as_strangers(differences_ND, [components], families)[0], 0)
    return np.sqrt(energy_N)


RESIDUAL_GAP = Metric("residual_gap", (at(FIRST),), _values, learns=True, strangers=_as_strangers)
