"""A UNet of low precision whose first and last layers are float32.

What a screen measures are small differences between predictions at nearby latents. Rounding the latent to 8 bits before
the first convolution, or the prediction after the last, would cost more of them than everything between the two.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def keep_ends_exact(unet: Any) -> None:
    """Let a UNet2DConditionModel take and give float32, computing in its own precision between conv_in and conv_out.

    Its text conditioning stays in its own precision. Nothing is changed in a float32 network.
    """
    dtype = unet.dtype
    if dtype == torch.float32:
        return
    ends = [unet.conv_in, unet.conv_out, *([unet.conv_norm_out] if unet.conv_norm_out is not None else [])]
    for layer in ends:
        layer.to(torch.float32)
    for layer in ends[1:]:
        layer.register_forward_pre_hook(_takes(torch.float32))
    unet.conv_in.register_forward_hook(lambda _layer, _inputs, output: output.to(dtype))
    # The UNet gives the embedding of t the precision of the latent.
    unet.time_embedding.register_forward_pre_hook(_takes(dtype))


def _takes(dtype: torch.dtype) -> Any:
    def cast(_layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(value.to(dtype) if isinstance(value, torch.Tensor) else value for value in inputs)

    return cast
