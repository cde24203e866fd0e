"""What a screen says it costs is what it asks of the model."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
import torch

from sharpaudit.config import ScoresConfig
from sharpaudit.errors import UserError
from sharpaudit.plugs import METRICS
from sharpaudit.scores.base import FIRST
from sharpaudit.scores.plan import evaluations as planned
from sharpaudit.scores.plan import places
from sharpaudit.scores.screen import ScreenConfig, screen, unconditional_predictions
from sharpaudit.scores.subspace import Subspace
from tests.support.wrapped import Wrapped, analytic

DEFAULT = ScoresConfig().metrics
COUNTED = [name for name in METRICS if name not in ("attention_entropy", "sharpness_jvp")]
"""Those that the analytic model can give and whose evaluations are plain forward passes."""
ALONE = dict.fromkeys(METRICS, 1) | {"sharpness": 3, "sharpness_jvp": 7, "norm_cosine": 2, "hessian_trace": 2}
SUBSETS = [*((name,) for name in COUNTED), *combinations(DEFAULT, 2), DEFAULT, tuple(COUNTED), tuple(COUNTED[::-1])]


@pytest.mark.parametrize("n_seeds", [1, 3])
@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
def test_the_planned_evaluations_are_those_made(names, n_seeds):
    model, metrics = Wrapped(analytic((0.9,))), METRICS.of(names)
    config = ScreenConfig(n_seeds, 0, 1.0, 4)
    known = unconditional_predictions(model, config, places(metrics))
    assert sum(model.rows) == n_seeds * len(places(metrics))
    model.rows.clear()
    prompts = [f"prompt {i}" for i in range(10)]
    subspaces = dict.fromkeys(config.seeds, Subspace(torch.zeros(192), torch.eye(192)[:2], None))
    screen(model, prompts, known, subspaces, config, metrics)
    assert sum(model.rows) == len(prompts) * n_seeds * sum(planned(metrics).values())


@pytest.mark.parametrize("name", METRICS.ours())
def test_what_each_metric_costs_alone(name):
    assert planned(METRICS.of([name])) == {name: ALONE[name]}


def test_all_together_share_what_they_can():
    # The first serves all but one; then both branches at x + h u, the jvp, the late, the noisiest and the probe's one.
    assert sum(planned(METRICS.of(list(METRICS))).values()) == 1 + 2 + 6 + 1 + 1 + 1
    assert sum(planned(METRICS.of(DEFAULT)).values()) == 3
    assert places(METRICS.of(DEFAULT)) == (FIRST,)


def test_the_config_knows_every_metric():
    assert ScoresConfig(metrics=METRICS.names()).metrics == tuple(METRICS)
    with pytest.raises(UserError, match=r'"sharpnes".*sharpness'):
        METRICS.of(["sharpnes"])


def test_the_docs_state_every_metric_and_its_cost():
    lines = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    assert {row[0].strip("`"): int(row[2]) for row in rows} == {name: ALONE[name] for name in METRICS}
    for name, _, _, beside, _ in rows:
        both = planned(METRICS.of(["noise_gap", name.strip("`")] if name != "`noise_gap`" else ["noise_gap"]))
        assert int(beside) == sum(both.values()) - 1 or name == "`noise_gap`"
