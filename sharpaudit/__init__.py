"""sharpaudit: which prompts make a text-to-image diffusion model reproduce its training images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sharpaudit.analysis import Run

__version__ = "0.1.0"
__all__ = ["open_run"]


def open_run(path: str | Path) -> Run:
    """A run for analysts; see sharpaudit.analysis, which is imported by the first call, since readers of a version need
    none of it. Raises UserError where there is no run, IntegrityError where a file is damaged.
    """
    from sharpaudit.analysis import Run

    return Run(path)
