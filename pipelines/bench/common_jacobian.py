"""Sharpness from two evaluations a prompt: the empty prompt's Jacobian is one matrix per seed, since x_T is common.

||DH Ds|| = (a / sigma^2)^2 ||J_c delta_x0 - J_0 delta_x0||. J_0 is built once from D displacements of the empty prompt;
a prompt then costs x0_hat(x, c) and x0_hat(x + h u, c), not a third evaluation for x0_hat(x + h u, empty). A rival of
the finite difference; not a metric, since an audit that asks for sharpness would also have to afford the D evaluations.

Shapes: B prompts, C H W latent, D = C H W.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from sharpaudit.denoisers.base import Denoiser
from sharpaudit.seeds import screen_latent

BATCH = 64


@torch.no_grad()
def jacobian(denoiser: Denoiser, x_CHW: torch.Tensor, t: float, step: float) -> torch.Tensor:
    """dx0_hat(x, empty) / dx by forward differences of length `step`, with shape (D, D): output, input."""
    empty = denoiser.unconditional()
    x0_CHW = denoiser.predict(x_CHW[None], t, empty).x0_hat[0]
    columns = []
    for moves_BD in torch.split(step * torch.eye(x_CHW.numel(), device=x_CHW.device), BATCH):
        moved_BCHW = x_CHW + moves_BD.reshape(-1, *x_CHW.shape)
        found_BCHW = denoiser.predict(moved_BCHW, t, empty.select([0] * len(moved_BCHW))).x0_hat
        columns.append(((found_BCHW - x0_CHW) / step).flatten(1).T)
    return torch.cat(columns, dim=1)


@torch.no_grad()
def sharpness(denoiser: Denoiser, prompts: Sequence[str], seed: int, step: float) -> npt.NDArray[np.float64]:
    """||DH Ds|| of each prompt at the first noise of `seed`, with shape (N,). step: h, in units of the latent."""
    t = denoiser.first_timestep()
    x_CHW = screen_latent(seed, 0, denoiser.latent_shape).to(denoiser.device)
    of_empty_DD = jacobian(denoiser, x_CHW, t, step)
    x0_empty_CHW = denoiser.predict(x_CHW[None], t, denoiser.unconditional()).x0_hat[0]
    level, found = denoiser.level(t), []
    for first in range(0, len(prompts), BATCH):
        text = denoiser.encode(prompts[first : first + BATCH])
        x_BCHW = x_CHW.expand(len(text), *x_CHW.shape)
        x0_BCHW = denoiser.predict(x_BCHW, t, text).x0_hat
        delta_BD = (x0_BCHW - x0_empty_CHW).flatten(1)
        size_B1 = torch.linalg.vector_norm(delta_BD, dim=1, keepdim=True)
        moved_BCHW = x_BCHW + step * (delta_BD / size_B1).reshape(x_BCHW.shape)
        along_BD = (denoiser.predict(moved_BCHW, t, text).x0_hat - x0_BCHW).flatten(1) / step * size_B1
        change_BD = along_BD - delta_BD @ of_empty_DD.T
        found.append((level.a / level.sigma**2) ** 2 * torch.linalg.vector_norm(change_BD, dim=1))
    values: npt.NDArray[np.float64] = torch.cat(found).cpu().double().numpy()
    return values
