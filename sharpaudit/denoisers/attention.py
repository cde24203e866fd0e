"""Cross-attention of a UNet, read beside its forward pass, which stays as it is to the last bit.

Shapes: B prompts, R of its rows, S pixels of a layer, H_layer by W_layer, L tokens, H heads, F features of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from sharpaudit.denoisers.base import AttentionRequest

SCALE, BIAS = "attention_scale", "attention_bias"
"""Tensors (B, L) of a conditioning that steer the attention to its tokens: logits times the first plus the second."""
_ORDER = ("down_blocks", "mid_block", "up_blocks")


def cross_attention_layers(unet: torch.nn.Module) -> dict[str, Any]:
    """The cross-attention layers by name, in the order in which a UNet runs through them."""
    named = [(name, module) for name, module in unet.named_modules() if name.endswith(".attn2")]
    return dict(sorted(named, key=lambda entry: _ORDER.index(entry[0].split(".")[0])))


@contextmanager
def recorded(
    unet: torch.nn.Module, request: AttentionRequest, size: Sequence[int]
) -> Iterator[dict[str, torch.Tensor]]:
    """While it is open a forward pass leaves here what `request` asks for, as `Prediction.attention`.

    size: height and width of the latent. Raises UserError for a layer that there is not.
    """
    layers, found = cross_attention_layers(unet), dict[str, torch.Tensor]()

    def reader(name: str) -> Callable[..., None]:
        def read(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            pixels_BSC = args[0] if args else kwargs["hidden_states"]
            found[name] = _asked_for(request, layer, pixels_BSC, kwargs["encoder_hidden_states"], size)

        return read

    with ExitStack() as hooks:
        for name in request.chosen(tuple(layers)):
            hooks.callback(layers[name].register_forward_pre_hook(reader(name), with_kwargs=True).remove)
        yield found


def _asked_for(
    request: AttentionRequest, layer: Any, pixels_BSC: torch.Tensor, text_BLE: torch.Tensor, size: Sequence[int]
) -> torch.Tensor:
    if request.rows is not None:
        rows = list(request.rows)
        pixels_BSC, text_BLE = pixels_BSC[rows], text_BLE[rows]
    attention_RHSL = attention(layer, pixels_BSC, text_BLE)
    if not request.per_pixel:
        mean_RL: torch.Tensor = attention_RHSL.mean(dim=(1, 2))
        return mean_RL
    map_RLS = attention_RHSL.mean(dim=1).transpose(1, 2)
    return map_RLS.reshape(*map_RLS.shape[:2], *_size_of(map_RLS.shape[2], size))


def attention(
    layer: Any,
    pixels_BSC: torch.Tensor,
    text_BLE: torch.Tensor,
    scale_BL: torch.Tensor | None = None,
    bias_BL: torch.Tensor | None = None,
) -> torch.Tensor:
    """Softmax attention of pixels to tokens, float32, with shape (B, H, S, L). scale, bias: see SCALE, BIAS."""
    query_BHSF = layer.to_q(pixels_BSC).unflatten(-1, (layer.heads, -1)).transpose(1, 2).float()
    key_BHLF = layer.to_k(text_BLE).unflatten(-1, (layer.heads, -1)).transpose(1, 2).float()
    logits_BHSL: torch.Tensor = query_BHSF @ key_BHLF.transpose(2, 3) * layer.scale
    if scale_BL is not None:
        logits_BHSL = logits_BHSL * scale_BL[:, None, None]
    if bias_BL is not None:
        logits_BHSL = logits_BHSL + bias_BL[:, None, None]
    return logits_BHSL.softmax(dim=-1)


@contextmanager
def steered(unet: torch.nn.Module, scale_BL: torch.Tensor, bias_BL: torch.Tensor) -> Iterator[None]:
    """While it is open every cross-attention layer attends with these logits. What is recorded is the model's own."""

    def instead(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], given: torch.Tensor) -> torch.Tensor:
        pixels_BSC = args[0] if args else kwargs["hidden_states"]
        text_BLE = kwargs["encoder_hidden_states"]
        weights_BHSL = attention(layer, pixels_BSC, text_BLE, scale_BL, bias_BL)
        value_BHLF = layer.to_v(text_BLE).unflatten(-1, (layer.heads, -1)).transpose(1, 2)
        found_BSC = (weights_BHSL.to(value_BHLF) @ value_BHLF).transpose(1, 2).flatten(2)
        for part in layer.to_out:
            found_BSC = part(found_BSC)
        changed_BSC: torch.Tensor = (found_BSC / layer.rescale_output_factor).to(given)
        return changed_BSC

    with ExitStack() as hooks:
        for layer in cross_attention_layers(unet).values():
            hooks.callback(layer.register_forward_hook(instead, with_kwargs=True).remove)
        yield


def _size_of(n_pixels: int, size: Sequence[int]) -> tuple[int, int]:
    """Height and width of a layer of so many pixels: the latent's, halved and rounded up as the network does."""
    height, width = size
    while height * width > n_pixels:
        height, width = (height + 1) // 2, (width + 1) // 2
    return height, width
