"""The cascade: later tiers see what earlier ones let through, thresholds come from fit prompts, p-values hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sharpaudit.config import ScoresConfig
from sharpaudit.errors import Status, UserError
from sharpaudit.plugs import METRICS
from sharpaudit.scores.cascade import fit_seeds, scores_as_strangers, screen_tiers, tiers, total_seeds
from sharpaudit.scores.residual_gap import residual_gap
from sharpaudit.scores.screen import ScreenConfig, differences, screen, unconditional_predictions
from sharpaudit.scores.subspace import fit_subspace
from sharpaudit.statistics.conformal import TOLERANCE, lexicographic, p_values
from tests.support.wrapped import Wrapped, analytic

CONFIG = ScreenConfig(1, 0, 1.0, 8)
PROMPTS = ["planted 0", "planted 1", *(f"harmless {i}" for i in range(20))]
THREE = ScoresConfig.model_validate(
    {
        "metrics": ["residual_gap"],
        "then": [
            {"above": 0.5, "metrics": ["noise_gap"], "n_seeds": 1},
            {"above": 0.9, "metrics": ["sharpness", "residual_gap"], "n_seeds": 3},
        ],
    }
)

GAP = METRICS["residual_gap"]


@pytest.fixture(scope="module")
def model():
    return Wrapped(analytic((0.9, 0.5)), poisoned=["broken"])


@pytest.fixture(scope="module")
def known(model):
    return unconditional_predictions(model, replace(CONFIG, n_seeds=total_seeds(tiers(THREE))))


@pytest.fixture(scope="module")
def subspaces(model, known):
    fit = [f"fit {i}" for i in range(40)]
    seeds = fit_seeds(tiers(THREE))
    return {k: fit_subspace(np.stack(differences(model, fit, known, replace(CONFIG, first_seed=k))), 4) for k in seeds}


def test_every_tier_draws_noise_of_its_own():
    assert [(tier.number, tier.first_seed, tier.n_seeds, tier.above) for tier in tiers(THREE)] == [
        (1, 0, 1, 0.0),
        (2, 1, 1, 0.5),
        (3, 2, 3, 0.9),
    ]


def test_a_tier_is_the_plain_screen_of_those_who_come_to_it(model, known, subspaces):
    cascade = tiers(THREE)
    alone = screen(model, PROMPTS, known, subspaces, CONFIG, cascade[0].metrics)
    first = np.array([row.mean("residual_gap") for row in alone])
    second = screen(model, PROMPTS, known, subspaces, replace(CONFIG, first_seed=1), cascade[1].metrics)
    thresholds = {2: float(np.median(first)), 3: float(np.quantile([row.mean("noise_gap") for row in second], 0.8))}
    model.rows.clear()
    found = screen_tiers(model, PROMPTS, known, subspaces, CONFIG, cascade, thresholds)
    assert [row.mean("residual_gap") for row in found[0]] == pytest.approx(first)
    to_second = first >= thresholds[2]
    to_third = to_second & (np.array([row.mean("noise_gap") for row in second]) >= thresholds[3])
    assert 0 < to_third.sum() < to_second.sum() < len(PROMPTS)
    for tier, entered in ((1, to_second), (2, to_third)):
        assert [entry is not Status.CLEARED for entry in found[tier]] == entered.tolist()
    assert sum(model.rows) == len(PROMPTS) + to_second.sum() + 3 * 3 * to_third.sum()
    third = screen(model, PROMPTS, known, subspaces, replace(CONFIG, n_seeds=3, first_seed=2), cascade[2].metrics)
    for i in np.flatnonzero(to_third):
        assert found[2][i].mean("sharpness") == pytest.approx(third[i].mean("sharpness"), rel=1e-4)
        assert len(found[2][i].seed_values["residual_gap"]) == 3


def test_a_prompt_that_fails_is_neither_cleared_nor_scored_later(model, known, subspaces):
    found = screen_tiers(model, ["broken", *PROMPTS], known, subspaces, CONFIG, tiers(THREE), {2: 0.0, 3: 0.0})
    assert np.isnan(found[0][0].mean("residual_gap"))
    assert [tier[0] for tier in found[1:]] == [Status.NO_SCORE, Status.NO_SCORE]
    assert all(not isinstance(entry, Status) for tier in found for entry in tier[1:])


def harmless(rng, n):
    """Differences with four large directions and small ones in 40 dimensions, float32, with shape (n, 40)."""
    return (rng.standard_normal((n, 40)) * np.array([20.0] * 4 + [1.0] * 36)).astype(np.float32)


def test_a_fit_prompt_is_measured_as_a_stranger():
    rows = harmless(np.random.default_rng(0), 60)
    found = scores_as_strangers(GAP, [rows], [9])
    own = residual_gap(torch.from_numpy(rows), fit_subspace(rows, 9)).numpy()
    strangers = residual_gap(torch.from_numpy(harmless(np.random.default_rng(1), 4000)), fit_subspace(rows[12:], 9))
    assert own.mean() < found.mean()
    assert found.mean() == pytest.approx(float(strangers.mean()), rel=0.05)
    # The first fold alone, by hand.
    fold = np.arange(60) % 5 == 0
    by_hand = residual_gap(torch.from_numpy(rows[fold]), fit_subspace(rows[~fold], 9)).numpy()
    np.testing.assert_allclose(found[fold], by_hand, rtol=1e-5)
    np.testing.assert_allclose(
        scores_as_strangers(METRICS["noise_gap"], [rows], [9]), np.linalg.norm(rows.astype(float), axis=1)
    )


def test_one_like_it_teaches_a_stranger_nothing():
    """Twins of every prompt: in folds of rows each would be measured on directions that its twin taught."""
    rows = np.repeat(harmless(np.random.default_rng(3), 40), 2, axis=0)
    families = [f"{i // 2:02d}" for i in range(80)]
    apart = scores_as_strangers(GAP, [rows], [15])
    together = scores_as_strangers(GAP, [rows], [15], families)
    assert together.mean() > 1.1 * apart.mean()
    np.testing.assert_allclose(together[::2], scores_as_strangers(GAP, [rows[::2]], [15]), rtol=1e-6)


def test_too_few_fit_prompts_are_refused():
    with pytest.raises(UserError, match="19 fit prompts could be evaluated; a cascade needs at least 20"):
        scores_as_strangers(GAP, [harmless(np.random.default_rng(0), 19)], [10])


def realised_rate(*, shared, alpha=0.05, repeats=60):
    """Share of harmless prompts with p <= alpha; shared: calibration prompts are the fit prompts."""
    rng, rates = np.random.default_rng(2), []
    for _ in range(repeats):
        fit, calibration, audited = harmless(rng, 99), harmless(rng, 99), harmless(rng, 200)
        subspace = fit_subspace(fit, 15)
        threshold = np.quantile(scores_as_strangers(GAP, [fit], [15]), 0.8)

        def score(rows, subspace=subspace, threshold=threshold):
            first = residual_gap(torch.from_numpy(rows), subspace).numpy()
            noisy = [rows + 0.3 * rng.standard_normal(rows.shape).astype(np.float32) for _ in range(3)]
            later = np.mean([residual_gap(torch.from_numpy(again), subspace).numpy() for again in noisy], axis=0)
            on = first >= threshold
            return 1.0 + on, np.where(on, later, first)

        parts = [score(fit if shared else calibration), score(audited)]
        ranks = lexicographic(*(np.concatenate(both) for both in zip(*parts, strict=True)))
        p = p_values(ranks[99:], ranks[:99])
        rates.append(float(np.mean(p <= alpha + TOLERANCE)))
    return np.array(rates)


@pytest.mark.chaos
def test_the_false_positive_rate_of_a_cascade_is_nominal():
    rates = realised_rate(shared=False)
    assert abs(rates.mean() - 0.05) < 3 * rates.std() / len(rates) ** 0.5


@pytest.mark.chaos
def test_calibrating_on_the_fit_prompts_inflates_it():
    assert realised_rate(shared=True, repeats=10).mean() > 0.15


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("sharpness", [{"above": 0.5, "metrics": ["noise_gap"]}]),
        ("residual_gap", [{"above": 0.5, "metrics": ["sharpness"]}, {"above": 0.5, "metrics": ["noise_gap"]}]),
    ],
)
def test_a_gate_that_fit_cannot_place_is_refused(first, then):
    with pytest.raises(ValueError, match="decides by residual_gap or noise_gap, this one by sharpness"):
        ScoresConfig.model_validate({"metrics": [first], "then": then})


def seeds_of(**scores):
    return fit_seeds(tiers(ScoresConfig.model_validate(scores)))


def test_fit_prompts_are_evaluated_where_something_is_learned_and_nowhere_else():
    assert seeds_of(metrics=["residual_gap"]) == (0,)
    assert seeds_of(metrics=["residual_gap"], n_seeds=3) == (0, 1, 2)
    # The noise floor is compared with the fit prompts at the first seed.
    assert seeds_of(metrics=["noise_gap", "sharpness"], n_seeds=3) == (0,)
    # A gate's threshold is the mean over its seeds, like the score that it judges.
    assert seeds_of(metrics=["noise_gap"], n_seeds=2, then=[{"metrics": ["sharpness"], "n_seeds": 2}]) == (0, 1)
    assert seeds_of(metrics=["noise_gap"], then=[{"metrics": ["sharpness", "residual_gap"], "n_seeds": 2}]) == (0, 1, 2)


def test_a_stranger_of_several_seeds_has_the_mean_of_their_scores():
    several = [harmless(np.random.default_rng(i), 40) for i in range(3)]
    found = scores_as_strangers(GAP, several, [3, 5, 8])
    alone = [scores_as_strangers(GAP, [rows], [k]) for rows, k in zip(several, (3, 5, 8), strict=True)]
    np.testing.assert_allclose(found, np.mean(alone, axis=0))


def test_a_metric_that_gives_no_threshold_lets_nobody_pass() -> None:
    with pytest.raises(ValueError, match="sharpness gives no threshold"):
        scores_as_strangers(METRICS["sharpness"], [np.zeros((40, 8), np.float32)], [1])
