"""[samples]: how pictures are made."""

from __future__ import annotations

from typing import Annotated

from sharpaudit.config.base import Section, identity, known
from sharpaudit.plugs import SOLVERS

SolverName = Annotated[str, known(SOLVERS)]


class SamplesConfig(Section):
    """Generation of the selected prompts."""

    solver: SolverName = identity(default="ddim")
    """How a sample gets from noise to a picture: "ddim", or "dpm-solver++" (of second order, multistep)."""
    steps: int = identity(default=25, ge=2, le=999)
    """Steps of the solver, each of two evaluations."""
    guidance: float = identity(default=5.0, ge=0, le=100)
    """Classifier-free guidance scale."""
    per_prompt: int = identity(default=4, ge=1, le=64)
    """Pictures of each prompt that is generated, flagged or drawn as a control, calibrating or setting the bands alike:
    what is said of one group holds for another only where both had as many chances to copy."""
    band_prompts: int = identity(default=100, ge=1, le=100_000)
    """Fit prompts whose samples set the bands of a match."""
