"""What a screen says it costs is what it asks of the model."""

from __future__ import annotations

from itertools import chain, combinations

import pytest
import torch

from sharpaudit.scores.plan import METRICS, plan
from sharpaudit.scores.residual_gap import Subspace
from sharpaudit.scores.screen import ScreenConfig, evaluations, screen, unconditional_predictions
from tests.scores.wrapped import Wrapped, analytic

SUBSETS = list(chain.from_iterable(combinations(METRICS, n) for n in (1, 2, 3)))


@pytest.mark.parametrize("n_seeds", [1, 3])
@pytest.mark.parametrize("metrics", SUBSETS, ids="+".join)
def test_the_planned_evaluations_are_those_made(metrics, n_seeds):
    model = Wrapped(analytic((0.9,)))
    known = unconditional_predictions(model, 0, n_seeds)
    assert sum(model.rows) == n_seeds
    model.rows.clear()
    subspace = Subspace(torch.zeros(192), torch.eye(192)[:2], None)
    config = ScreenConfig(n_seeds, 0, "finite_difference", 1.0, 4)
    prompts = [f"prompt {i}" for i in range(10)]
    screen(model, prompts, known, subspace, config, metrics)
    assert sum(model.rows) == len(prompts) * sum(evaluations(config, metrics).values())
    assert sum(evaluations(config, metrics).values()) == n_seeds * (3 if "sharpness" in metrics else 1)


def test_metrics_share_the_first_evaluation():
    assert plan(METRICS, "finite_difference").total == 3
    for mode in ("finite_difference", "jvp"):
        alone = sum(plan((metric,), mode).total for metric in METRICS)
        assert alone - plan(METRICS, mode).total == len(METRICS) - 1
