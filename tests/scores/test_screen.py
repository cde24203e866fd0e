"""The screen as a whole: what changes no bit, what a failing row does, and what it finds."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sharpaudit.errors import Status
from sharpaudit.plugs import METRICS
from sharpaudit.scores.base import ATTENTION, FIRST, PROBE, STEP_SHARE, TANGENT, step_length
from sharpaudit.scores.plan import places
from sharpaudit.scores.screen import ScreenConfig, differences, noise_floor, screen, unconditional_predictions
from sharpaudit.scores.subspace import fit_subspace
from sharpaudit.seeds import screen_latent
from tests.support.wrapped import Wrapped, analytic, exact_sharpness

SHARES = (0.5, 0.7, 0.9, 1.0) * 3
PLANTED = [f"planted {i}" for i in range(len(SHARES))]
PROMPTS = ["a cat", "planted 0", "", "a dog", "planted 3", "a cat by the sea", "planted 11"]
CONFIG = ScreenConfig(2, 0, 1.0, 4)
DEFAULT = ("residual_gap", "noise_gap", "sharpness")
PLAIN = tuple(m for m in METRICS.of(METRICS.ours()) if not {ATTENTION, TANGENT} & set(m.needs))
"""All that the analytic model gives by plain evaluations."""


@pytest.fixture(scope="module")
def model():
    return analytic(SHARES)


@pytest.fixture(scope="module")
def known(model):
    return unconditional_predictions(model, CONFIG, places(PLAIN))


@pytest.fixture(scope="module")
def subspaces(model, known):
    fit, one = [f"fit {i}" for i in range(150)], replace(CONFIG, n_seeds=1)
    return {k: fit_subspace(np.stack(differences(model, fit, known, replace(one, first_seed=k))), 20) for k in (0, 1)}


@pytest.fixture(scope="module")
def scores(model, known, subspaces):
    return screen(model, PROMPTS, known, subspaces, CONFIG, PLAIN)


@settings(deadline=None, max_examples=15)
@given(st.permutations(range(len(PROMPTS))), st.integers(1, 9), st.integers(1, 2))
def test_order_batch_size_and_threads_change_no_bit(model, known, subspaces, scores, order, batch_size, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        config = replace(CONFIG, batch_size=batch_size)
        found = screen(model, [PROMPTS[i] for i in order], known, subspaces, config, PLAIN)
    finally:
        torch.set_num_threads(before)
    assert found == [scores[i] for i in order]


def test_a_seed_has_the_same_value_whatever_others_are_asked_for(model, known, subspaces, scores):
    one = screen(
        model, PROMPTS, {place: x0[:1] for place, x0 in known.items()}, subspaces, replace(CONFIG, n_seeds=1), PLAIN
    )
    for few, many in zip(one, scores, strict=True):
        assert few.seed_values == {metric: values[:1] for metric, values in many.seed_values.items()}


def test_a_metric_has_the_same_value_alone(model, known, subspaces, scores):
    for metric in PLAIN:
        alone = screen(model, PROMPTS, known, subspaces, CONFIG, (metric,))
        assert [s.seed_values for s in alone] == [{metric.name: s.seed_values[metric.name]} for s in scores]


def test_the_empty_prompt_differs_from_itself_in_nothing(scores):
    empty = scores[PROMPTS.index("")].seed_values
    assert empty["noise_gap"] == empty["sharpness"] == [0, 0]


def test_sharpness_is_the_closed_form_of_both_branches():
    model, prompts = analytic((0.5, 0.9), (3, 2, 2)), ["planted 0", "a cat", "planted 1"]
    config = replace(CONFIG, n_seeds=1)
    known = unconditional_predictions(model, config)
    x = screen_latent(0, 0, model.latent_shape).expand(3, 3, 2, 2)
    expected = exact_sharpness(model, prompts, x, model.level(model.first_timestep()))
    found = screen(model, prompts, known, {}, config, METRICS.of(["sharpness_jvp"]))
    np.testing.assert_allclose([s.seed_values["sharpness_jvp"][0] for s in found], expected, rtol=1e-5)


def test_finite_differences_agree_with_forward_mode(model, known, subspaces):
    """At a small step in value, at the default step in rank."""
    from scipy.stats import spearmanr

    prompts, config = PLANTED + [f"harmless {i}" for i in range(40)], replace(CONFIG, batch_size=64)
    values = []
    for name, step in (("sharpness_jvp", 1.0), ("sharpness", 0.03), ("sharpness", "auto")):
        found = screen(model, prompts, known, subspaces, replace(config, step=step), METRICS.of([name]))
        values.append([np.mean(s.seed_values[name]) for s in found])
    np.testing.assert_allclose(values[1], values[0], rtol=0.03)
    assert spearmanr(values[0], values[2]).statistic > 0.95


def test_the_default_step_moves_every_element_alike_whatever_the_size_of_a_latent():
    for shape in ((3, 8, 8), (4, 64, 64)):
        assert step_length("auto", shape) / math.prod(shape) ** 0.5 == pytest.approx(STEP_SHARE)
        assert step_length(0.5, shape) == 0.5
    model = analytic((0.9,))
    values = []
    for step in ("auto", STEP_SHARE * math.prod(model.latent_shape) ** 0.5):
        config = replace(CONFIG, n_seeds=1, step=step)
        known = unconditional_predictions(model, config, [FIRST, PROBE])
        values.append(screen(model, ["a cat"], known, {}, config, METRICS.of(["sharpness", "hessian_trace"]))[0])
    assert values[0] == values[1]


def test_the_prompts_are_encoded_once_a_batch(model, known, subspaces):
    counting = Wrapped(model)
    screen(counting, PROMPTS, known, subspaces, CONFIG, PLAIN)
    assert sorted(counting.encoded) == [1, 3, 4]


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_prompt_without_a_finite_prediction_spoils_no_other(model, known, subspaces, scores, poison):
    sick = Wrapped(model, poisoned={"a dog"}, poison=poison)
    found = screen(sick, PROMPTS, known, subspaces, CONFIG, PLAIN)
    bad = PROMPTS.index("a dog")
    assert not any(np.isfinite(values).any() for values in found[bad].seed_values.values())
    assert [s for i, s in enumerate(found) if i != bad] == [s for i, s in enumerate(scores) if i != bad]
    rows = differences(sick, PROMPTS, known, CONFIG)
    assert [isinstance(row, Status) for row in rows] == [i == bad for i in range(len(PROMPTS))]
    assert rows[bad] is Status.NON_FINITE


def test_short_memory_changes_no_bit(model, known, subspaces, scores):
    # Sharpness asks for both branches, so two prompts make four rows.
    assert screen(Wrapped(model, most_rows=4), PROMPTS, known, subspaces, CONFIG, PLAIN) == scores
    none = screen(Wrapped(model, most_rows=1), PROMPTS, known, subspaces, CONFIG, PLAIN)
    assert none == [Status.OUT_OF_MEMORY] * len(PROMPTS)


def test_differences_are_those_of_the_noise_gap(model, known, scores):
    rows = differences(model, PROMPTS, known, replace(CONFIG, batch_size=3))
    gaps = [float(np.linalg.norm(row.astype(np.float64))) for row in rows]
    np.testing.assert_allclose(gaps, [s.seed_values["noise_gap"][0] for s in scores], rtol=1e-5, atol=1e-9)
    assert all(row.dtype == np.float32 for row in rows)


def test_the_unconditional_prediction_is_that_of_the_empty_prompt(model, known):
    x = torch.stack([screen_latent(0, k, model.latent_shape) for k in range(2)])
    assert torch.equal(known["first"], model.predict(x, 981, model.encode(["", ""])).x0_hat)
    assert torch.equal(unconditional_predictions(model, replace(CONFIG, n_seeds=1))["first"], known["first"][:1])


def test_the_noise_floor_is_what_other_kernels_do_to_a_batch(model, known):
    eight = replace(CONFIG, batch_size=8)
    assert noise_floor(model, eight, known) == 0
    level, error = model.level(981), 1e-3
    expected = level.a / level.sigma * error * 192**0.5
    assert noise_floor(Wrapped(model, batched_error=error), eight, known) == pytest.approx(expected, rel=1e-3)
    assert noise_floor(Wrapped(model, batched_error=error), replace(CONFIG, batch_size=1), known) == 0
    # A batch that does not fit is halved, as a screen's would be.
    assert noise_floor(Wrapped(model, most_rows=2), eight, known) == 0


def auc(positive, negative):
    return float(np.mean(np.asarray(positive)[:, None] > np.asarray(negative)))


def test_memorised_prompts_stand_out_by_the_residual_gap_and_less_by_the_noise_gap(model, known, subspaces):
    prompts = PLANTED + [f"harmless {i}" for i in range(200)]
    found = screen(model, prompts, known, subspaces, replace(CONFIG, batch_size=64), PLAIN)
    value = {m: np.array([np.mean(s.seed_values[m]) for s in found]) for m in DEFAULT}
    n = len(PLANTED)
    assert auc(value["residual_gap"][:n], value["residual_gap"][n:]) > 0.999
    assert auc(value["noise_gap"][:n], value["noise_gap"][n:]) < 0.97
    # Harmless prompts move the prediction a long way, and nearly all of it inside the subspace.
    assert np.median(value["residual_gap"][n:]) < 0.2 * np.median(value["noise_gap"][n:])
    # The more of a prompt is its picture, the larger the gap.
    by_share = [value["residual_gap"][i:n:4].mean() for i in range(4)]
    assert (np.diff(by_share) > 0).all()
