"""Products with the Jacobian of x0_hat, and gradients through it, of batches that fit the device's memory.

J is the derivative of x0_hat(x, c) at one time, in x and in the tensors of the conditioning; rows are independent.

    jvp         J v, by forward mode: a pass as dear as about three forwards
    vjp         J^T u, by reverse mode: about two forwards beside the first
    gradients   of one number a row, made of x0_hat

Of an exact model J in x is symmetric (a / sigma^2 times the posterior covariance), of a network it is not: J v and
J^T v are two measures. Forward mode has no kernel but math attention, whose memory grows with the square of the tokens;
reverse mode keeps the fast ones. A batch that does not fit is halved (batching.py), its backward pass included; a row
that does not fit alone is Status.OUT_OF_MEMORY. Gradients are there also where the caller has switched them off.

Shapes: N rows, B of a batch, C H W latent.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from sharpaudit.batching import in_batches
from sharpaudit.denoisers.base import Conditioning, Denoiser
from sharpaudit.errors import Status

Tensors = dict[str, torch.Tensor]
Loss = Callable[[torch.Tensor, list[int]], torch.Tensor]
"""A number (B,) for each x0_hat (B, C, H, W) of a batch, and the numbers of its rows among all."""


@dataclass(frozen=True)
class Asked:
    """Where J is taken. x: with shape (N, C, H, W). conditioning: N rows. t: the model's time."""

    denoiser: Denoiser
    x_NCHW: torch.Tensor
    t: float
    conditioning: Conditioning

    def part(self, rows: list[int]) -> tuple[torch.Tensor, Tensors]:
        """x and the conditioning's tensors of some rows."""
        return self.x_NCHW[rows], self.conditioning.select(rows).tensors

    def x0_hat(self, x_BCHW: torch.Tensor, tensors: Tensors) -> torch.Tensor:
        """One evaluation per row."""
        return self.denoiser.predict(x_BCHW, self.t, Conditioning(tensors)).x0_hat


@dataclass(frozen=True)
class Gradient:
    """Of one row. value: what was differentiated. x: with shape (C, H, W). conditioning: by tensor, without the row's
    axis, in the tensor's own precision."""

    value: float
    x: torch.Tensor
    conditioning: Tensors


@contextmanager
def forward_mode() -> Iterator[None]:
    """Attention by the only kernel that has a forward mode, and silence of what torch compiles for it."""
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        # torch's forward mode compiles helpers of its own, at its first use, by a call that torch deprecates.
        warnings.filterwarnings("ignore", message=".*torch.jit.script")
        yield


def product(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """J v of any function of x at x, with the shape of its values."""
    with forward_mode():
        found: torch.Tensor = torch.func.jvp(function, (x,), (v,))[1]
    return found


def jvp(
    asked: Asked, v_NCHW: torch.Tensor | None, v_conditioning: Tensors | None = None, *, batch_size: int
) -> list[torch.Tensor | Status]:
    """J v of each row, with shape (C, H, W).

    v: a direction of x, with its shape. v_conditioning: directions of tensors of the conditioning, by name, with their
    shapes; what is not named stays. Of both together, the sum.
    """
    directions = v_conditioning or {}

    def batch(rows: list[int]) -> list[torch.Tensor]:
        x_BCHW, tensors = asked.part(rows)
        v_BCHW = torch.zeros_like(x_BCHW) if v_NCHW is None else v_NCHW[rows]
        moving = {name: tensors[name] for name in directions}

        def x0_hat(x_BCHW: torch.Tensor, moved: Tensors) -> torch.Tensor:
            return asked.x0_hat(x_BCHW, tensors | moved)

        with forward_mode():
            along = {name: direction[rows] for name, direction in directions.items()}
            products: torch.Tensor = torch.func.jvp(x0_hat, (x_BCHW, moving), (v_BCHW, along))[1]
        return list(products)

    return in_batches(batch, range(len(asked.x_NCHW)), batch_size)


def gradients(asked: Asked, loss: Loss, *, batch_size: int) -> list[Gradient | Status]:
    """The gradient of each row's number in x and in every floating-point tensor of the conditioning."""

    def batch(rows: list[int]) -> list[Gradient]:
        x_BCHW, tensors = asked.part(rows)
        moving = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}

        def values(x_BCHW: torch.Tensor, moved: Tensors) -> torch.Tensor:
            return loss(asked.x0_hat(x_BCHW, tensors | moved), rows)

        with torch.enable_grad():
            values_B, pull = torch.func.vjp(values, x_BCHW, moving)[:2]
            x_gradient, by_name = pull(torch.ones_like(values_B))
        parts = ({name: tensor[i] for name, tensor in by_name.items()} for i in range(len(rows)))
        return [Gradient(*row) for row in zip(values_B.tolist(), x_gradient, parts, strict=True)]

    return in_batches(batch, range(len(asked.x_NCHW)), batch_size)


def vjp(asked: Asked, u_NCHW: torch.Tensor, *, batch_size: int) -> list[Gradient | Status]:
    """J^T u of each row, in x and in the conditioning; the value is <u, x0_hat>. u: with the shape of x."""

    def along(x0_BCHW: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        return (x0_BCHW * u_NCHW[list(rows)]).flatten(1).sum(dim=1)

    return gradients(asked, along, batch_size=batch_size)
