"""Settings of `sharpaudit bench mitigation`, made and not drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipelines.bench.mitigation.settings import Pictures, Setting


def made(
    method: str, strength: int, copies: Sequence[int], similarity: float, aligned: float, evaluations: float = 50
) -> Setting:
    """copies: of two pictures of each exact plant; a harmless prompt beside them, which no method changes."""
    spread = np.linspace(-0.01, 0.01, len(copies))
    exact = {
        f"p{i}": Pictures(
            "exact",
            [j < n for j in range(2)],
            [similarity + spread[i]] * 2,
            [i] * 2,
            [aligned + 0.1 + spread[i]] * 2,
            [0.1] * 2,
            [0.5] * 2,
        )
        for i, n in enumerate(copies)
    }
    harmless = {"h": Pictures("harmless", [False] * 2, [0.4] * 2, [99] * 2, [0.6] * 2, [0.1] * 2, [1.0] * 2)}
    return Setting(method, strength, f"x = {strength}", evaluations, 0.1, exact | harmless)


NONE = made("none", 0, [2] * 10, 0.8, 0.4)
