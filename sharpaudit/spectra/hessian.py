"""Hessians of the learned log density at a latent, as products with vectors and, of a small latent, as matrices.

At x = a x0 + sigma eps a model's score is s = (a x0_hat(x, c) - x) / sigma^2 (denoisers/base.py), so its Hessian is

    H_c = (a J_c - I) / sigma^2,    J_c = d x0_hat(x, c) / dx
    DH  = H_c - H_0                 what the prompt adds: the curvature of Jeon, Kim and No (ICML 2025), section 4.1

An exact model's J is symmetric, a network's is not. Eigenvalues are those of the symmetric part (J + J^T) / 2, and
`asymmetry` tells the size of the rest, |J - J^T|_F / |J + J^T|_F. They have the unit 1 / latent^2.

Shapes: K vectors, N rows of a batch, D = C H W latent elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch

from sharpaudit.denoisers.base import Conditioning, Denoiser
from sharpaudit.denoisers.jacobian import Asked, Gradient, jvp, vjp
from sharpaudit.denoisers.sampling import DDIM, Guided, times
from sharpaudit.errors import Status, UserError

Floats = npt.NDArray[np.float64]
BRANCHES = ("conditional", "unconditional", "difference")


@dataclass(frozen=True)
class Curvature:
    """A model at one latent. x: with shape (C, H, W). t: the model's time. batch_size: rows of an evaluation.

    conditioning, unconditional: of a prompt and of none, a row each.
    """

    denoiser: Denoiser
    x_CHW: torch.Tensor
    t: float
    conditioning: Conditioning
    unconditional: Conditioning
    batch_size: int = 32

    @property
    def size(self) -> int:
        """D."""
        return self.x_CHW.numel()

    def product(self, branch: str, v_KD: Floats) -> Floats:
        """The symmetric part of a branch's Hessian times each vector, with shape (K, D). Raises UserError."""
        along_KD, back_KD = self._both(branch, v_KD)
        return self._hessian((along_KD + back_KD) / 2, branch, v_KD)

    def matrices(self, empty_DD: Floats | None = None) -> dict[str, tuple[Floats, float]]:
        """The symmetric Hessian (D, D) of each branch and its asymmetry: 2 D products by forward mode.

        empty_DD: what `jacobian` gives of no prompt, where it is known: at one x and t it is the same for all prompts.
        """
        given_DD = self.jacobian(self.conditioning)
        empty_DD = self.jacobian(self.unconditional) if empty_DD is None else empty_DD
        identity_DD = np.eye(self.size)
        return {
            branch: (self._hessian((J_DD + J_DD.T) / 2, branch, identity_DD), _share(J_DD - J_DD.T, J_DD + J_DD.T))
            for branch, J_DD in zip(BRANCHES, (given_DD, empty_DD, given_DD - empty_DD), strict=True)
        }

    def asymmetry(self, branch: str, v_KD: Floats) -> float:
        """|J - J^T|_F / |J + J^T|_F, estimated from products with vectors of independent elements of variance 1."""
        along_KD, back_KD = self._both(branch, v_KD)
        return _share(along_KD - back_KD, along_KD + back_KD)

    def _both(self, branch: str, v_KD: Floats) -> tuple[Floats, Floats]:
        """J v and J^T v of a branch, with shape (K, D) each."""
        signed = {"conditional": self.conditioning, "unconditional": self.unconditional}
        parts = [(1.0, signed[branch])] if branch in signed else [(1.0, self.conditioning), (-1.0, self.unconditional)]
        along_KD, back_KD = np.zeros_like(v_KD), np.zeros_like(v_KD)
        for sign, row in parts:
            asked, v_KCHW = self._asked(row, len(v_KD)), self._latents(v_KD)
            along_KD += sign * _rows(jvp(asked, v_KCHW, batch_size=self.batch_size))
            back_KD += sign * _rows(vjp(asked, v_KCHW, batch_size=self.batch_size))
        return along_KD, back_KD

    def _hessian(self, J_v: Floats, branch: str, v: Floats) -> Floats:
        """What a Jacobian's product with v makes of a Hessian's; in a difference the identities cancel."""
        level = self.denoiser.level(self.t)
        found: Floats = (level.a * J_v - (0.0 if branch == "difference" else 1.0) * v) / level.sigma**2
        return found

    def jacobian(self, row: Conditioning) -> Floats:
        """dx0_hat / dx of a conditioning of one row, with shape (D, D): D products by forward mode."""
        columns = []
        for first in range(0, self.size, self.batch_size):
            n = min(self.batch_size, self.size - first)
            e_ND = np.eye(n, self.size, first)
            columns.append(_rows(jvp(self._asked(row, n), self._latents(e_ND), batch_size=self.batch_size)))
        J_DD: Floats = np.concatenate(columns).T
        return J_DD

    def _asked(self, row: Conditioning, n: int) -> Asked:
        x_NCHW = self.x_CHW.expand(n, *self.x_CHW.shape).contiguous()
        return Asked(self.denoiser, x_NCHW, self.t, row.select([0] * n))

    def _latents(self, v_ND: Floats) -> torch.Tensor:
        return torch.from_numpy(v_ND).to(self.x_CHW).reshape(-1, *self.x_CHW.shape)


def at_step(
    denoiser: Denoiser, prompt: str, x_T: torch.Tensor, step: int, steps: int, guidance: float, batch_size: int = 32
) -> Curvature:
    """A model where a sample of a prompt is before its step number `step`, from 1 on, of so many DDIM steps.

    x_T: initial latent, with shape (C, H, W). Raises UserError.
    """
    if not 1 <= step <= steps:
        raise UserError(f"step {step} of {steps}: give 1 to {steps}")
    with torch.no_grad():
        model = Guided(denoiser, denoiser.encode([prompt]), denoiser.unconditional(), guidance)
        walk = DDIM.steps(model, x_T[None].to(denoiser.device), times(denoiser, steps))
        found = next(islice(walk, step - 1, None))
    return Curvature(denoiser, found.x[0], found.t, model.conditioning, model.unconditional, batch_size)


def _rows(found: Sequence[torch.Tensor | Gradient | Status]) -> Floats:
    """Products as rows, with shape (N, D)."""
    rows = []
    for row in found:
        if isinstance(row, Status):
            raise UserError("a product with one vector does not fit the memory of this device; use one with more")
        rows.append((row.x if isinstance(row, Gradient) else row).detach().flatten().double().cpu().numpy())
    return np.stack(rows)


def _share(rest: Floats, whole: Floats) -> float:
    norm = float(np.linalg.norm(whole))
    return float(np.linalg.norm(rest)) / norm if norm else 0.0
