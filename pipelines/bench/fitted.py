"""What a lab's fit prompts teach, for benches that fit as an audit does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sharpaudit.denoisers.base import Denoiser
from sharpaudit.errors import Status
from sharpaudit.lab.detectors import Truth
from sharpaudit.scores.base import Known
from sharpaudit.scores.screen import ScreenConfig, differences

Floats = npt.NDArray[np.float64]


def fitted_on(
    denoiser: Denoiser, rows: Sequence[Truth], known: Known, config: ScreenConfig
) -> tuple[npt.NDArray[np.float32], list[str]]:
    """delta_eps at the config's first seed of the fit prompts that can be evaluated, (F, D), and each one's family."""
    found = zip(rows, differences(denoiser, [row.prompt for row in rows], known, config), strict=True)
    kept = [(row.family, vector) for row, vector in found if not isinstance(vector, Status)]
    return np.stack([vector for _, vector in kept]), [family for family, _ in kept]
