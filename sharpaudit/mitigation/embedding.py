"""Another embedding of the prompt, at which it moves the prediction little (Wen et al., ICLR 2024, section 4.2).

The text encoder's output is moved by AdamW at the first step until the noise gap |De| is below a target; the mark that
begins a prompt stays as it is, padding moves as words do. The released code takes the norm of all pictures of a batch
together; here every picture has its own, so that none depends on what it is drawn beside.

Shapes: B pictures, L tokens, E embedding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from sharpaudit.denoisers.base import Conditioning
from sharpaudit.errors import UserError
from sharpaudit.mitigation.base import BACKWARD, Case, Difference, Method, Steered, norms, plain

TEXT = "prompt"
"""The tensor of a conditioning that holds the text encoder's output."""


@dataclass(frozen=True)
class Embedding(Method):
    """target: of |De| of one picture; None for none: all steps are taken."""

    target: float | None = None
    lr: float = 0.05
    most_steps: int = 10

    name = "embedding"
    source = "Wen et al., ICLR 2024"

    def steer(self, case: Case) -> Steered:
        """Another conditioning. Raises UserError for a model whose prompts are no embeddings of tokens."""
        steered = plain(case)
        held_BLE = steered.conditioning.tensors.get(TEXT)
        if held_BLE is None or held_BLE.dim() != 3:
            raise UserError("mitigation by embedding: this model's prompts are no embeddings of tokens; take another")
        x_T = steered.x_T.to(case.denoiser.device)
        begin_BLE, free_BLE = held_BLE[:, :1], held_BLE[:, 1:].detach().clone().float().requires_grad_(True)
        optimizer = torch.optim.AdamW([free_BLE], lr=self.lr)
        n = len(case.prompts)
        best, values = free_BLE.detach().clone(), torch.full((n,), torch.inf, device=x_T.device)
        first, spent, done = None, torch.zeros_like(values), torch.zeros_like(values, dtype=torch.bool)
        for step in range(self.most_steps + 1):
            with torch.enable_grad():
                asked = Conditioning(
                    steered.conditioning.tensors | {TEXT: torch.cat([begin_BLE, free_BLE.to(held_BLE)], 1)}
                )
                now = norms(Difference(case, asked, steered.unconditional).eps(x_T))
            spent += 2 * ~done
            first = now.detach() if first is None else first
            better = (now.detach() < values) & ~done
            best[better], values[better] = free_BLE.detach()[better], now.detach()[better]
            done |= values <= (-torch.inf if self.target is None else self.target)
            if bool(done.all()) or step == self.most_steps:
                break
            optimizer.zero_grad()
            with torch.enable_grad():
                torch.autograd.backward(now.sum())
            # Without the prompt nothing depends on it: the gradient goes back through half of the rows.
            spent += BACKWARD * ~done
            optimizer.step()
        found = Conditioning(steered.conditioning.tensors | {TEXT: torch.cat([begin_BLE, best.to(held_BLE)], 1)})
        return replace(
            steered,
            conditioning=found,
            evaluations=spent.tolist(),
            reached=None if self.target is None else done.tolist(),
            told={"before": (values if first is None else first).tolist(), "after": values.tolist()},
        )

    def values(self, case: Case) -> list[float]:
        """The noise gap of each row as it is."""
        steered = plain(case)
        with torch.no_grad():
            gap_B = norms(
                Difference(case, steered.conditioning, steered.unconditional).eps(case.x_T.to(case.denoiser.device))
            )
        return [float(value) for value in gap_B]
