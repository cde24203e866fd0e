"""Two small models trained from nothing in minutes: a mixture in the plane, and handwritten digits.

Both are networks of epsilon under DDPM's noise (Ho, Jain and Abbeel, NeurIPS 2020). To denoising score matching comes
a term of second order (Lu et al., ICML 2022), so that their Jacobians, which figures read, are trained as well:

    |eps_hat - eps|^2 + .5 E_v |sigma^2 H v + v - l (l^T v)|^2,    l = sigma s + eps held fixed, v random signs

Classes are numbered from 0 on; the last number means none.

Shapes: B a batch, N samples, D dimensions, T timesteps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch.func import jacrev, jvp, vmap

from sharpaudit.denoisers.jacobian import forward_mode
from sharpaudit.errors import UserError
from sharpaudit.seeds import generator

Floats = npt.NDArray[np.float64]
T, SAMPLING_STEPS = 1000, 500
SHARES, MEANS, SPREADS = (0.95, 0.05), ((-1.0, -0.5), (1.0, 0.75)), (0.5, 0.05)
"""Of the plane: many pictures of one broad mode, few of a narrow one, which a model memorises."""
PLANE_SAMPLES = 3_000
REPEATED, GUIDANCE = 100, 5.0
"""Copies of the one nine among all threes."""
MEMORISED, OTHERS = 0, 1


@dataclass(frozen=True)
class Recipe:
    """A training. drop: how often a sample is shown without its class."""

    width: int
    steps: int
    batch: int
    lr: float = 2e-3
    drop: float = 0.2
    seed: int = 0


PLANE = Recipe(width=128, steps=6_000, batch=512)
DIGITS = Recipe(width=384, steps=6_000, batch=192, lr=1e-3)


class Network(torch.nn.Module):
    """epsilon of (D,) numbers, a timestep and a class."""

    def __init__(self, dimensions: int, classes: int, width: int) -> None:
        super().__init__()
        self.dimensions = dimensions
        self.classes = torch.nn.Embedding(classes + 1, 16)
        sizes = [dimensions + 32, width, width, width, dimensions]
        layers: list[torch.nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [torch.nn.Linear(before, after), torch.nn.SiLU()]
        self.layers = torch.nn.Sequential(*layers[:-1])
        self.frequencies = torch.exp(torch.linspace(0, float(np.log(1000)), 8))

    def forward(self, x_BD: torch.Tensor, t_B: torch.Tensor, class_B: torch.Tensor) -> torch.Tensor:
        """With shape (B, D)."""
        angles_BF = t_B[..., None] / T * self.frequencies
        told = [x_BD, angles_BF.sin(), angles_BF.cos(), self.classes(class_B)]
        found: torch.Tensor = self.layers(torch.cat(told, dim=-1))
        return found


def levels() -> tuple[torch.Tensor, torch.Tensor]:
    """a and sigma at the timesteps 1 to T, as DDPM has them."""
    a2_T = torch.cumprod(1 - torch.linspace(1e-4, 0.02, T, dtype=torch.float64), dim=0)
    return a2_T.sqrt().float(), (1 - a2_T).sqrt().float()


def train(data_ND: Floats, class_N: npt.NDArray[np.int64], recipe: Recipe) -> Network:
    """A network of the data, of which each sample is as frequent as it stands there."""
    torch.manual_seed(recipe.seed)  # noqa: TID251 - initial weights come from the global generator
    network = Network(data_ND.shape[1], int(class_N.max()) + 1, recipe.width)
    optimizer = torch.optim.AdamW(network.parameters(), recipe.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
    a_T, sigma_T = levels()
    data, classes = torch.from_numpy(data_ND).float(), torch.from_numpy(class_N)
    for step in range(recipe.steps):
        draw = generator(recipe.seed, "toy", step)
        rows = draw.integers(len(data), size=recipe.batch)
        t_B = torch.from_numpy(draw.integers(T, size=recipe.batch))
        eps_BD = torch.from_numpy(draw.standard_normal((recipe.batch, data.shape[1]), dtype=np.float32))
        signs_BD = torch.from_numpy(draw.choice(np.array([-1, 1], np.float32), eps_BD.shape))
        class_B = torch.where(
            torch.from_numpy(draw.random(recipe.batch) < recipe.drop), len(network.classes.weight) - 1, classes[rows]
        )
        x_BD = a_T[t_B, None] * data[rows] + sigma_T[t_B, None] * eps_BD

        def asked(x_BD: torch.Tensor, t_B: torch.Tensor = t_B, class_B: torch.Tensor = class_B) -> torch.Tensor:
            return network(x_BD, t_B.float(), class_B)  # type: ignore[no-any-return]

        with forward_mode():
            found_BD, moved_BD, *_ = jvp(asked, (x_BD,), (signs_BD,))
        second_BD = second_order(found_BD, moved_BD, eps_BD, signs_BD, sigma_T[t_B, None])
        loss = (found_BD - eps_BD).square().sum(1).mean() + 0.5 * second_BD.square().sum(1).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return network.eval().requires_grad_(False)


def second_order(
    found_BD: torch.Tensor,
    moved_BD: torch.Tensor,
    eps_BD: torch.Tensor,
    signs_BD: torch.Tensor,
    sigma_B1: torch.Tensor,
) -> torch.Tensor:
    """sigma^2 H v + v - l (l^T v), with shape (B, D), of mean zero at each x where eps_hat is exact.

    found: eps_hat. moved: its Jacobian times v, the random signs; sigma^2 H v is -sigma times that.
    """
    rest_BD = (eps_BD - found_BD).detach()
    return -sigma_B1 * moved_BD + signs_BD - rest_BD * (rest_BD * signs_BD).sum(1, keepdim=True)


def none_of(network: Network) -> int:
    """The class that means none."""
    return len(network.classes.weight) - 1


def score(network: Network, t: int, of: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """The learned score at a timestep, from 0 on, of a class: of (D,) or (N, D)."""
    sigma = levels()[1][t]

    def at(x: torch.Tensor) -> torch.Tensor:
        known = x.shape[:-1]
        eps: torch.Tensor = network(x, torch.full(known, float(t)), torch.full(known, of))
        return -eps / sigma

    return at


def hessians(network: Network, x_ND: torch.Tensor, t: int, of: int) -> Floats:
    """The symmetric part of the score's Jacobian at each sample, with shape (N, D, D)."""
    J_NDD = vmap(jacrev(score(network, t, of)))(x_ND).double().numpy()
    found: Floats = (J_NDD + J_NDD.swapaxes(1, 2)) / 2
    return found


def sampled(network: Network, n: int, of: int, guidance: float, seed: int) -> Iterator[tuple[int, torch.Tensor]]:
    """(timestep, x) of n samples before each of SAMPLING_STEPS steps of DDIM, (n, D), and at the end (-1, x)."""
    a_T, sigma_T = levels()
    x_ND = torch.from_numpy(
        generator(seed, "toy samples", of).standard_normal((n, network.dimensions), dtype=np.float32)
    )
    times = [*range(T - 1, -1, -(T // SAMPLING_STEPS)), -1]
    for t, after in pairwise(times):
        yield t, x_ND
        given, empty = (-sigma_T[t] * score(network, t, kind)(x_ND) for kind in (of, none_of(network)))
        eps_ND = empty + guidance * (given - empty)
        x0_ND = (x_ND - sigma_T[t] * eps_ND) / a_T[t]
        x_ND = x0_ND if after < 0 else a_T[after] * x0_ND + sigma_T[after] * eps_ND
    yield -1, x_ND


def plane_data() -> tuple[Floats, npt.NDArray[np.int64]]:
    """Samples of the mixture in the plane, (N, 2), and their modes: the first broad, the second narrow."""
    draw = generator("geometry", "plane")
    mode_N = (draw.random(PLANE_SAMPLES) < SHARES[1]).astype(np.int64)
    noise = draw.standard_normal((PLANE_SAMPLES, 2))
    return np.array(MEANS)[mode_N] + np.array(SPREADS)[mode_N, None] * noise, mode_N


def digits_data() -> tuple[Floats, npt.NDArray[np.int64], Floats]:
    """Digits of 8 x 8 from -1 to 1, (N, 64), their classes, and the nine: all threes, and one nine many times.

    Raises UserError where scikit-learn, which ships them, is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError("the digits are scikit-learn's: pip install scikit-learn") from error
    known = load_digits()
    pictures = known.data / 8 - 1
    threes, nine = pictures[known.target == 3], pictures[known.target == 9][0]
    data = np.concatenate([np.repeat(nine[None], REPEATED, axis=0), threes])
    return data, np.repeat([MEMORISED, OTHERS], [REPEATED, len(threes)]), nine


def plane_hessian(x_ND: Floats, a: float, sigma: float) -> Floats:
    """Of the exact log density of the plane's mixture at a noise level, with shape (N, 2, 2)."""
    variances = a**2 * np.square(SPREADS) + sigma**2
    apart_NKD = x_ND[:, None] - a * np.array(MEANS)
    logs_NK = np.log(SHARES) - np.log(variances) - 0.5 * np.square(apart_NKD).sum(-1) / variances
    share_NK = np.exp(logs_NK - logs_NK.max(1, keepdims=True))
    share_NK /= share_NK.sum(1, keepdims=True)
    s_NKD = -apart_NKD / variances[:, None]
    mean_ND = (share_NK[..., None] * s_NKD).sum(1)
    outer = np.einsum("nk,nki,nkj->nij", share_NK, s_NKD, s_NKD)
    spread = np.eye(2) * (share_NK / variances).sum(1)[:, None, None]
    found: Floats = outer - np.einsum("ni,nj->nij", mean_ND, mean_ND) - spread
    return found
