"""Sharpness along what harmless prompts cannot explain: idea (g) inside the sharpness metric, a rival of residual_gap.

With R the residual of delta_eps outside the fit prompts' subspace and u = R / ||R||, the change of delta_eps from x to
x + h u, over h and times ||R||, is about ||DH R|| as sharpness is about ||DH Ds||: three evaluations.

Shapes: B prompts, D latent elements.
"""

from __future__ import annotations

import torch

from sharpaudit.scores.base import DISPLACED, FIRST, Evidence, Metric, at
from sharpaudit.scores.noise_gap import delta_eps
from sharpaudit.scores.subspace import Subspace


def outside(rows_BD: torch.Tensor, subspace: Subspace) -> torch.Tensor:
    """What the subspace's directions leave, in float64, with shape (B, D)."""
    directions_KD = subspace.directions_KD.double()
    rest_BD: torch.Tensor = rows_BD.double() - rows_BD.double() @ directions_KD.T @ directions_KD
    return rest_BD


def _slope(evidence: Evidence) -> tuple[torch.Tensor, torch.Tensor]:
    """||R|| (B,) and the change of delta_eps along R (B, D)."""
    level, x_BCHW = evidence.level(), evidence.x()
    moved_BD = delta_eps(evidence.delta_x0(), level)
    rest_BD = outside(moved_BD - evidence.subspace.mean_D, evidence.subspace)
    size_B = torch.linalg.vector_norm(rest_BD, dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    along_BCHW = (rest_BD / size_B[:, None]).float().reshape(x_BCHW.shape)
    there_BD = delta_eps(evidence.difference(x_BCHW + evidence.step * along_BCHW), level)
    return size_B, (there_BD - moved_BD).double() / evidence.step


def _along(evidence: Evidence) -> torch.Tensor:
    size_B, slope_BD = _slope(evidence)
    found_B: torch.Tensor = size_B * torch.linalg.vector_norm(slope_BD, dim=1)
    return found_B


def _along_outside(evidence: Evidence) -> torch.Tensor:
    size_B, slope_BD = _slope(evidence)
    found_B: torch.Tensor = size_B * torch.linalg.vector_norm(outside(slope_BD, evidence.subspace), dim=1)
    return found_B


ALONG = Metric("sharpness_along_residual", (at(FIRST), DISPLACED), _along, learns=True)
ALONG_OUTSIDE = Metric("sharpness_along_residual_outside", (at(FIRST), DISPLACED), _along_outside, learns=True)
