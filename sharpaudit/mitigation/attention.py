"""Attention that rests on the words of a prompt and on its beginning (Ren et al., ECCV 2024, section 5).

Of a memorised prompt the padding behind it draws attention. In the conditional branch padding gets none, and the logit
of the mark that begins a prompt is multiplied. Any number of heads, prompts and pictures at once; no evaluation more.

Shapes: B pictures, L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from sharpaudit.denoisers.attention import BIAS, SCALE
from sharpaudit.denoisers.base import Conditioning, Denoiser, Tokenizer
from sharpaudit.mitigation.base import Case, Method, Mitigation, Steered, plain
from sharpaudit.mitigation.embedding import TEXT


@dataclass(frozen=True)
class Attention(Method):
    """begin: what the logit of the first token is multiplied by, 1.1 to 1.5 there. end: whether the mark that ends a
    prompt keeps its attention."""

    begin: float = 1.25
    end: bool = True

    source = "Ren et al., ECCV 2024"

    def refusal(self, denoiser: Denoiser) -> str | None:
        """Of a model that does not say `steers_attention`: one without cross-attention to tokens, or one that would not
        look at the tensors that steer it."""
        if getattr(denoiser, "steers_attention", False) and getattr(denoiser, "tokenizer", None) is not None:
            return None
        return "mitigation by attention: this model lets nobody steer its attention; take another"

    def steer(self, case: Case) -> Steered:
        """Another attention."""
        steered = plain(case)
        text_BLE = steered.conditioning.tensors[TEXT]
        tokenizer: Tokenizer = case.denoiser.tokenizer  # type: ignore[attr-defined]  # by `refusal`
        shape = text_BLE.shape[:2]
        lengths = [tokens.n_tokens for tokens in tokenizer.tokens(case.prompts)]
        kept_B = torch.tensor(lengths).clamp(max=shape[1]) - int(not self.end)
        beyond_BL = torch.arange(shape[1])[None] >= kept_B.clamp(min=1)[:, None]
        scale_BL, nothing_BL = torch.ones(shape), torch.zeros(shape)
        bias_BL = nothing_BL.masked_fill(beyond_BL, -torch.inf)
        neutral = {SCALE: scale_BL.to(text_BLE.device), BIAS: nothing_BL.to(text_BLE.device)}
        scale_BL = scale_BL.clone()
        scale_BL[:, 0] = self.begin
        own = {SCALE: scale_BL.to(text_BLE.device), BIAS: bias_BL.to(text_BLE.device)}
        return replace(
            steered,
            conditioning=Conditioning(steered.conditioning.tensors | own),
            unconditional=Conditioning(steered.unconditional.tensors | neutral),
        )


ATTENTION = Mitigation("attention", Attention(), "begin", (1.0, 1.25, 1.5, 2.0))
