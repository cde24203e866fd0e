"""Attention that rests on the words of a prompt and on its beginning (Ren et al., ECCV 2024, section 5).

Of a memorised prompt the padding behind it draws attention. In the conditional branch padding gets none, and the logit
of the mark that begins a prompt is multiplied. Any number of heads, prompts and pictures at once; no evaluation more.

Shapes: B pictures, L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from sharpaudit.denoisers.attention import BIAS, SCALE
from sharpaudit.denoisers.base import Conditioning, Tokenizer
from sharpaudit.errors import UserError
from sharpaudit.mitigation.base import Case, Method, Steered, plain
from sharpaudit.mitigation.embedding import TEXT


@dataclass(frozen=True)
class Attention(Method):
    """begin: what the logit of the first token is multiplied by, 1.1 to 1.5 there. end: whether the mark that ends a
    prompt keeps its attention."""

    begin: float = 1.25
    end: bool = True

    name = "attention"
    source = "Ren et al., ECCV 2024"

    def steer(self, case: Case) -> Steered:
        """Another attention. Raises UserError for a model that does not say `steers_attention`: one without
        cross-attention to tokens, or one that would not look at the tensors that steer it."""
        steered = plain(case)
        text_BLE = steered.conditioning.tensors.get(TEXT)
        tokenizer: Tokenizer | None = getattr(case.denoiser, "tokenizer", None)
        steers = getattr(case.denoiser, "steers_attention", False)
        if not steers or text_BLE is None or tokenizer is None:
            raise UserError("mitigation by attention: this model lets nobody steer its attention; take another")
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
