"""Other noise without a gradient (Han et al., NeurIPS 2025, the batch-wise form).

Twice x goes against what the noise gap gains far along its own direction, u = De / |De|:

    x <- x - step (De(x + reach u) - De(x))

and the first tenth of the steps is drawn by the prompt alone. Eight evaluations a picture.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from sharpaudit.mitigation.base import Case, Difference, Method, Mitigation, Steered, along, norms, plain
from sharpaudit.mitigation.delay import part_of, unguided_before


@dataclass(frozen=True)
class Noise(Method):
    """rounds: of the adjustment. step: its length. reach: how far along u the gap is looked at, in units of the latent.
    unguided: share of the steps that are drawn without guidance at the beginning, 5 of 50 there."""

    rounds: int = 2
    step: float = 0.7
    reach: float = 50.0
    unguided: float = 0.1

    source = "Han et al., NeurIPS 2025"

    def steer(self, case: Case) -> Steered:
        """Other noise, and a late guidance."""
        steered = plain(case)
        difference = Difference(case, steered.conditioning, steered.unconditional)
        x, sizes = steered.x_T.to(case.denoiser.device), []
        with torch.no_grad():
            for _ in range(self.rounds):
                noisy = difference.noisy(x)
                gap = difference.eps(noisy)
                sizes.append(norms(gap))
                x = x - self.step * (difference.eps(noisy + self.reach * along(gap)) - gap)
        told = {"before": sizes[0].tolist()} if sizes else {}
        spent = [4.0 * self.rounds] * len(case.prompts)
        watch = unguided_before(part_of(case.steps, self.unguided))
        return replace(steered, x_T=x, watch=watch, evaluations=spent, told=told)


NOISE = Mitigation("noise", Noise(), "rounds", (1, 2, 4, 8))
