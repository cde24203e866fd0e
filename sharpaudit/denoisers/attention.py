"""Cross-attention of a UNet, read beside its forward pass, which stays as it is to the last bit.

Shapes: B prompts, S pixels of a layer, L tokens, H heads, F features of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

LAYER = 3
"""The fourth cross-attention layer that the network runs through, or its last, as Ren et al. (ECCV 2024) read it."""
_ORDER = ("down_blocks", "mid_block", "up_blocks")


def cross_attention_layers(unet: torch.nn.Module) -> list[Any]:
    """The cross-attention layers in the order in which a UNet runs through them."""
    named = [(name, module) for name, module in unet.named_modules() if name.endswith(".attn2")]
    return [module for _, module in sorted(named, key=lambda entry: _ORDER.index(entry[0].split(".")[0]))]


@contextmanager
def recorded(unet: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """While it is open each forward pass appends its attention, with shape (B, L)."""
    layers, found = cross_attention_layers(unet), list[torch.Tensor]()
    layer = layers[min(LAYER, len(layers) - 1)]

    def read(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        pixels = args[0] if args else kwargs["hidden_states"]
        found.append(attention(module, pixels, kwargs["encoder_hidden_states"]))

    handle = layer.register_forward_pre_hook(read, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()


def attention(layer: Any, pixels_BSC: torch.Tensor, text_BLE: torch.Tensor) -> torch.Tensor:
    """Softmax attention of pixels to tokens, mean over heads and pixels, float32, with shape (B, L)."""
    query_BHSF = layer.to_q(pixels_BSC).unflatten(-1, (layer.heads, -1)).transpose(1, 2).float()
    key_BHLF = layer.to_k(text_BLE).unflatten(-1, (layer.heads, -1)).transpose(1, 2).float()
    logits_BHSL = query_BHSF @ key_BHLF.transpose(2, 3) * layer.scale
    mean_BL: torch.Tensor = logits_BHSL.softmax(dim=-1).mean(dim=(1, 2))
    return mean_BL
