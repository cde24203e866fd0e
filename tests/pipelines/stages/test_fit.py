"""Fit and score: from tables of prompts to those of differences, directions, thresholds and scores."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.stages.fit import DifferencesWorker, SubspaceWorker, UnconditionalWorker, screen_config, stacked
from pipelines.stages.score import ScoreWorker
from pipelines.stages.thresholds import ThresholdsWorker
from sharpaudit.config import AuditConfig
from sharpaudit.errors import Status, UserError
from sharpaudit.plugs import METRICS
from sharpaudit.scores.cascade import scores_as_strangers
from sharpaudit.scores.screen import unconditional_predictions
from sharpaudit.scores.subspace import Subspace, fit_subspace
from tests.support.stage_tables import config, prompts
from tests.support.wrapped import Wrapped, analytic

MODEL = analytic((0.9,))
SEEDS = pa.table({"seed_index": pa.array(range(2), pa.int32())})


def differences(n: int = 30, *, model: Any = MODEL, seed: int = 0) -> pa.Table:
    asked = config("scores.n_seeds=3")
    known = unconditional_predictions(model, screen_config(asked))
    table = prompts(n)
    table = table.append_column("seed_index", pa.array([seed] * n, pa.int32()))
    return DifferencesWorker(model, asked, known).process(table)


def test_the_empty_prompt_has_a_row_for_every_seed_and_place() -> None:
    asked = config("scores.n_seeds=2", 'scores.metrics=["norm_cosine"]')
    made = (
        UnconditionalWorker(MODEL, asked).process(pa.table({"seed_index": pa.array(range(2), pa.int32())})).to_pylist()
    )
    assert [(row["seed_index"], row["place"]) for row in made] == [(k, p) for k in range(2) for p in ("first", "late")]
    assert {len(row["x0_hat"]) for row in made} == {192}
    assert all(row["noise_floor"] < 1e-3 for row in made)


def test_a_model_that_gives_nothing_finite_is_refused() -> None:
    sick = Wrapped(MODEL, poisoned={""})
    with pytest.raises(UserError, match="output for the empty prompt is not finite"):
        UnconditionalWorker(sick, config()).process(SEEDS)


def test_every_fit_prompt_has_a_difference_or_a_reason() -> None:
    made = differences(5, model=Wrapped(MODEL, poisoned={"prompt 3"})).to_pylist()
    assert [row["status"] for row in made] == [*[Status.OK] * 3, Status.NON_FINITE, Status.OK]
    assert made[3]["difference"] is made[3]["noise_gap"] is None
    for row in (made[0], made[4]):
        assert row["noise_gap"] == pytest.approx(np.linalg.norm(row["difference"]), rel=1e-6)


def test_a_difference_is_of_its_seed_and_of_no_neighbour() -> None:
    alone, beside = differences(1, seed=2).to_pylist()[0], differences(7, seed=2).to_pylist()[0]
    assert np.allclose(alone["difference"], beside["difference"], atol=1e-6)
    assert not np.allclose(alone["difference"], differences(1, seed=1).to_pylist()[0]["difference"], atol=1e-3)


def test_the_subspace_is_the_mean_and_then_the_directions() -> None:
    rows = differences(40).append_column("family_id", pa.array([str(i) for i in range(40)]))
    made = SubspaceWorker(config("scores.components=3")).process(rows)
    fitted = fit_subspace(stacked(rows["difference"]), 3, rows["family_id"].to_pylist())
    assert made["component"].to_pylist() == [0, 1, 2, 3]
    assert made["variance_share"].to_pylist() == [None, *fitted.variance_shares_K]
    assert np.array_equal(stacked(made["direction"])[1:], fitted.directions_KD.numpy())
    assert set(made["n_fit"].to_pylist()) == {fitted.n_fit}


def test_a_threshold_is_the_quantile_of_strangers() -> None:
    asked = config("scores.then=[{above=0.7}]")
    rows = differences(60).append_column("family_id", pa.array([str(i) for i in range(60)]))
    (row,) = ThresholdsWorker(asked, {0: 4}).process(rows).to_pylist()
    values = scores_as_strangers(
        METRICS["residual_gap"], [stacked(rows["difference"])], [4], rows["family_id"].to_pylist()
    )
    assert row["threshold"] == pytest.approx(np.quantile(values, 0.7))
    assert (row["tier"], row["metric"], row["quantile"], row["n"]) == (2, "residual_gap", 0.7, 60)


def scored(
    asked: AuditConfig, table: pa.Table, thresholds: dict[int, float], model: Any = MODEL
) -> list[dict[str, Any]]:
    known = unconditional_predictions(model, replace(screen_config(asked), n_seeds=4))
    fitted = fit_subspace(stacked(differences(40)["difference"]), 4)
    subspaces: dict[int, Subspace] = dict.fromkeys(range(4), fitted)
    return ScoreWorker(model, asked, known, subspaces, thresholds).process(table).to_pylist()


def test_every_prompt_has_a_row_for_each_tier_and_metric() -> None:
    both, later = 'scores.metrics=["residual_gap", "noise_gap"]', 'scores.then=[{metrics=["noise_gap"], n_seeds=2}]'
    table = pa.concat_tables([prompts(4), pa.table({"prompt_id": ["planted"], "prompt": ["planted 0"]})])
    gaps = {r["prompt_id"]: r["value"] for r in scored(config(both), table, {}) if r["metric"] == "residual_gap"}
    line = sorted(gaps.values())[2]
    rows = scored(config(both, later), table, {2: line})
    keys = [(row["prompt_id"], row["tier"], row["metric"]) for row in rows]
    assert len(set(keys)) == len(keys) == 5 * 3
    assert {r["prompt_id"]: r["value"] for r in rows if (r["tier"], r["metric"]) == (1, "residual_gap")} == gaps
    for row in (row for row in rows if row["tier"] == 2):
        went_on = gaps[row["prompt_id"]] >= line
        assert row["status"] == (Status.OK if went_on else Status.CLEARED)
        assert (row["value"] is None) == (not went_on)
        assert row["seed_values"] is None or len(row["seed_values"]) == 2


def test_a_prompt_that_fails_has_a_status_and_no_value() -> None:
    rows = scored(config(), prompts(3), {}, Wrapped(MODEL, poisoned={"prompt 1"}))
    ids = prompts(3)["prompt_id"].to_pylist()
    failed = {row["prompt_id"] for row in rows if row["status"] == Status.NON_FINITE}
    assert failed == {ids[1]}
    assert all((row["value"] is None) == (row["prompt_id"] in failed) for row in rows)
