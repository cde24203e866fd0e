"""Attention entropy at step 1 (LE of Ren et al., ECCV 2024): over how many tokens the picture's attention spreads.

With A the cross-attention of the network's fourth cross-attention layer, averaged over heads and pixels (a network
with fewer gives its last),

    attention_entropy = - sum over tokens of A log A.

Larger means more memorised: for other prompts attention rests on the start token. Maps of the same evaluation as the
noise gap's, conditional branch only, every one of the encoder's token positions counted. Unit: nats.

Shapes: B prompts, L tokens.
"""

from __future__ import annotations

import torch

from sharpaudit.scores.base import ATTENTION, FIRST, Evidence, Metric, at


def attention_entropy(attention_BL: torch.Tensor) -> torch.Tensor:
    """Entropy of each row, with shape (B,). Rows sum to 1."""
    entropy_B: torch.Tensor = torch.special.entr(attention_BL).sum(dim=1)
    return entropy_B


def _values(evidence: Evidence) -> torch.Tensor:
    return attention_entropy(evidence.attention())


ATTENTION_ENTROPY = Metric("attention_entropy", (at(FIRST), ATTENTION), _values)
