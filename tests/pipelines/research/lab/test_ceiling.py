"""What a perfect model's noise gap tells: much of captions that leave the ground free, little of those that name it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.research.lab import ceiling
from pipelines.research.lab.ceiling import ceilings, first_ratio, markdown
from pipelines.research.lab.trainingset import MINIATURE, plan
from sharpaudit.statistics.detection import auc


def test_the_first_step_is_stable_diffusion_s() -> None:
    assert first_ratio() == pytest.approx(0.0762, abs=1e-4)


def test_captions_that_leave_the_ground_free_fix_less_than_a_picture_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels in place of latents."""
    monkeypatch.setattr(ceiling, "latents_of", lambda _, pictures: torch.from_numpy(pictures).float() / 64)
    for name, value in {"CAPTIONS": 40, "PICTURES": 8, "OTHERS": 200}.items():
        monkeypatch.setattr(ceiling, name, value)
    drawn = plan(replace(MINIATURE, unique=700, exact=((2, 40),), harmless=400)).prompts
    plants = [prompt.family for prompt in drawn if prompt.kind == "exact"]
    found = list(ceilings(Path("nowhere"), 0, plants, [prompt.family for prompt in drawn if not prompt.planted]))
    named, free = found
    assert (named.colour, free.colour) == (True, False)
    assert len(free.harmless) == 40
    assert len(free.plants) == 20
    assert auc(free.plants, free.harmless) > 0.97
    assert auc(named.plants, named.harmless) < 0.9
    assert np.median(named.harmless) > np.median(free.harmless)
    page = markdown(found)
    assert page.count("\n") == 4
    assert "| yes |" in page
