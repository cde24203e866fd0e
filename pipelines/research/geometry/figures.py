"""The figures of `sharpaudit bench figures` by name, in the order in which they are made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pipelines.research.geometry import lab_figures, toy_figures
from pipelines.research.geometry.drawing import Asked, Made

FIGURES: dict[str, Callable[[Asked], Made]] = {
    "plane": toy_figures.plane,
    "digits": toy_figures.digits,
    "spectra": lab_figures.spectra,
    "traces": lab_figures.traces,
    "branches": lab_figures.branches,
    "identities": toy_figures.identities,
    "generalised": lab_figures.generalised,
    "fisher-rao": toy_figures.fisher_rao,
}


def make(name: str, asked: Asked, out: Path) -> None:
    """Write OUT/NAME.png and OUT/NAME.csv. Raises UserError."""
    FIGURES[name](asked).write(name, out)
