"""The subspace: two routes to the same directions, and a number of them that the fit prompts choose."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch

from sharpaudit.errors import UserError
from sharpaudit.scores import subspace
from sharpaudit.scores.residual_gap import residual_gap
from sharpaudit.scores.subspace import CANDIDATES, choose_components, fit_subspace, gram, principal_directions, typical
from sharpaudit.seeds import generator


def harmless(n, d=300, directions=4, size=6.0, name="harmless"):
    """Differences that move far in some directions and a little in all, about a mean."""
    common = generator("subspace", d, directions)
    basis, mean = common.standard_normal((directions, d)) / d**0.5, common.standard_normal(d)
    draw = generator("subspace", name)
    far = size * d**0.5 * draw.standard_normal((n, directions)) @ basis
    return (mean + far + draw.standard_normal((n, d))).astype(np.float32)


def test_the_gram_route_finds_what_the_svd_finds(monkeypatch):
    rows = harmless(60)
    plain = principal_directions(rows, 6)
    monkeypatch.setattr(subspace, "EXACT_ELEMENTS", 0)
    monkeypatch.setattr(subspace, "COLUMNS", 70)
    for ours, theirs in zip(principal_directions(rows, 6), plain, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(gram(rows), rows.astype(float) @ rows.astype(float).T, rtol=1e-10)


def test_large_latents_take_blocks_of_columns(monkeypatch):
    """As many elements as the largest latents have, fewer prompts: no array of all of them in float64."""
    rows = np.zeros((20, 16 * 128 * 128), np.float32)
    rows[:, :400] = harmless(20, 400)
    monkeypatch.setattr(subspace, "EXACT_ELEMENTS", 0)
    made = fit_subspace(rows, 3)
    small = fit_subspace(rows[:, :400], 3)
    torch.testing.assert_close(made.directions_KD[:, :400], small.directions_KD, rtol=1e-4, atol=1e-6)


def test_large_latents_need_little_memory_beside_their_differences():
    """A copy of the rows that are kept would take as much again, as would each copy of many directions."""
    rows = harmless(160, 16 * 128 * 128)
    tracemalloc.start()
    made = fit_subspace(rows, 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert made.n_fit >= 150
    directions = made.directions_KD.numel() * 12  # in float64, then in float32
    blocks = 3 * len(rows) * subspace.COLUMNS * 8
    assert peak < directions + blocks + 10 * rows.shape[1] * 8 < rows.nbytes


def by_hand(rows, k):
    """The rule's noise of k directions: every fifth fitted on the others, by a decomposition of each."""
    left = np.empty(len(rows))
    for fold in range(5):
        held = np.arange(len(rows)) % 5 == fold
        mean, directions, _ = principal_directions(rows[~held], k)
        centred = rows[held] - mean
        left[held] = np.square(centred - (centred @ directions.T) @ directions).sum(axis=1)
    return left.std(ddof=1) / (1 - k / rows.shape[1])


def test_the_rule_is_the_one_that_is_stated():
    rows = harmless(250, directions=7)
    noise = {k: by_hand(rows, k) for k in CANDIDATES if k <= 40}
    line = min(noise.values()) * (1 + 1 / np.sqrt(2 * 249))
    assert choose_components(rows) == min(k for k, value in noise.items() if value <= line)
    assert fit_subspace(rows, "auto").directions_KD.shape[0] == choose_components(rows[typical(rows)])


def with_planted(n, strength=12.0, copies=1):
    """300 harmless fit prompts and n that each change a detail of their own, which `copies` of them share."""
    detail = generator("subspace", "planted").standard_normal((n // copies, 300)).repeat(copies, axis=0)
    detail *= strength / np.linalg.norm(detail, axis=1, keepdims=True)
    planted = harmless(n, directions=9, name="planted fit") + detail
    return np.concatenate([harmless(300, directions=9), planted]).astype(np.float32), planted


def test_a_memorised_fit_prompt_does_not_hide_itself():
    rows, planted = with_planted(15)
    kept = typical(rows)
    assert not kept[300:].any()
    assert kept[:300].mean() >= 0.97
    made, clean = fit_subspace(rows, 20), harmless(500, directions=9, name="clean").astype(np.float32)
    assert made.n_fit == kept.sum()
    line = np.quantile(residual_gap(torch.from_numpy(clean), made).numpy(), 0.99)
    assert (residual_gap(torch.from_numpy(planted.astype(np.float32)), made).numpy() > line).all()
    # What would become of them otherwise.
    mean, directions, _ = principal_directions(rows, 20)
    taught = planted - mean - (planted - mean) @ directions.T @ directions
    assert (np.linalg.norm(taught, axis=1) < line).mean() > 0.5


def test_one_family_of_memorised_fit_prompts_hides_no_member():
    """Ten wordings of one caption: apart they would teach each other."""
    rows, _ = with_planted(10, copies=10)
    families = [*(f"h{i}" for i in range(300)), *["one"] * 10]
    assert not typical(rows, families)[300:].any()


@pytest.mark.parametrize("in_one", [50, 85, 95, 99])
@pytest.mark.parametrize("components", [5, "auto"])
def test_a_family_may_hold_most_of_the_fit_prompts(in_one, components):
    rows = harmless(100, directions=5).astype(np.float32)
    families = [*["one"] * in_one, *(f"f{i}" for i in range(100 - in_one))]
    made = fit_subspace(rows, components, families)
    assert 10 <= made.n_fit <= 100
    assert torch.isfinite(made.directions_KD).all()


def test_one_family_alone_teaches_a_given_number_of_directions_and_no_other():
    rows = harmless(100, directions=5).astype(np.float32)
    assert len(fit_subspace(rows, 5, ["one"] * 100).directions_KD) == 5
    with pytest.raises(UserError, match="all 100 fit prompts are one family"):
        fit_subspace(rows, "auto", ["one"] * 100)


def test_too_few_or_equal_fit_prompts_are_all_typical():
    assert typical(with_planted(2)[0][290:]).all()
    assert typical(np.ones((40, 8), np.float32)).all()


@pytest.mark.parametrize(("directions", "chosen"), [(1, 1), (5, 5), (18, 20)])
def test_it_takes_as_many_directions_as_harmless_prompts_move_in(directions, chosen):
    assert choose_components(harmless(400, directions=directions)) == chosen


@pytest.mark.parametrize("n", [10, 13, 60])
def test_few_fit_prompts_get_few_directions(n):
    assert 1 <= choose_components(harmless(n)) <= max(1, n // 5)


def test_the_chosen_number_tells_a_planted_detail_as_well_as_any():
    """A detail of random direction among harmless prompts: no fixed K separates it much better than the rule's."""
    fit, clean = harmless(300, directions=9), harmless(400, directions=9, name="clean")
    detail = generator("subspace", "detail").standard_normal((100, 300))
    planted = harmless(100, directions=9, name="planted") + 9 * detail / np.linalg.norm(detail, axis=1, keepdims=True)

    def separation(k):
        made = fit_subspace(fit, k)
        scores = [residual_gap(torch.from_numpy(rows.astype(np.float32)), made).numpy() for rows in (planted, clean)]
        return (scores[0].mean() - scores[1].mean()) / scores[1].std()

    assert separation("auto") > 0.95 * max(separation(k) for k in (2, 5, 10, 20, 50))
    assert separation("auto") > 2 * separation(2)
