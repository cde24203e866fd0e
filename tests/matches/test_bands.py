"""Bands are learned, and a copy is above everything that harmless prompts gave."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharpaudit.errors import UserError
from sharpaudit.matches.decide import Bands, Pair, band_of, false_match_bound, learn_bands


def learned(values, quantile, exceptions=0):
    """Each value from a prompt of its own."""
    return learn_bands(pairs(values, [f"p{value}-{i}" for i, value in enumerate(values)]), quantile, exceptions)


def pairs(values, prompts):
    """A sample each."""
    return [Pair(prompt, str(i), value) for i, (value, prompt) in enumerate(zip(values, prompts, strict=True))]


similarities = st.lists(st.floats(-1, 1), min_size=1, max_size=40)


@given(similarities, st.floats(0.01, 0.99))
def test_no_band_sample_is_a_copy_and_anything_above_is(values, quantile):
    bands = learned(values, quantile)
    assert bands.n_samples == len(values)
    assert "copy" not in {band_of(value, bands) for value in values}
    assert band_of(float(np.nextafter(max(values), 2)), bands) == "copy"
    assert bands.near_above <= bands.copy_above


@given(similarities, st.floats(0.01, 0.99))
def test_near_holds_the_upper_share_of_the_band_samples(values, quantile):
    bands = learned(values, quantile)
    below = sum(band_of(value, bands) == "none" for value in values)
    assert below <= np.ceil(quantile * (len(values) - 1) + 1e-9)
    assert bands.near_above in values
    assert band_of(bands.near_above, bands) == "near"


@given(similarities, st.randoms())
def test_bands_do_not_depend_on_order(values, random):
    shuffled = random.sample(values, len(values))
    assert learned(shuffled, 0.9) == learned(values, 0.9)


def test_without_band_samples_there_are_no_bands():
    with pytest.raises(UserError, match="band sample"):
        learned([], 0.95)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_undefined_similarities_are_never_a_verdict(value):
    with pytest.raises(ValueError, match=r"NaN|nan|inf"):
        learned([0.1, value], 0.95)
    with pytest.raises(ValueError, match=r"nan|inf"):
        band_of(value, Bands(0.9, 0.8, 10, 10, 0))


@given(st.integers(1, 10_000), st.floats(0.5, 0.99))
def test_the_bound_is_where_n_misses_are_just_credible(n, level):
    bound = false_match_bound(n, level=level)
    assert (1 - bound) ** n == pytest.approx(1 - level, rel=1e-6)


def test_the_bound_of_200_samples_and_of_none():
    assert false_match_bound(200) == pytest.approx(0.015, abs=5e-4)
    assert false_match_bound(0) == 1
    with pytest.raises(ValueError, match="n = -1"):
        false_match_bound(-1)


def test_the_bound_covers_at_its_level():
    n, rounds = 30, 4000
    largest = np.random.default_rng(0).random((rounds, n)).max(axis=1)
    covered = np.mean(1 - largest <= false_match_bound(n))
    assert abs(covered - 0.95) < 4 * np.sqrt(0.95 * 0.05 / rounds)


def test_a_prompt_that_copies_hides_no_other_copy_and_its_samples_go_together():
    """One of a hundred harmless prompts was memorised after all: two samples at .95, the others below .6."""
    rng = np.random.default_rng(0)
    values, prompts = [*rng.uniform(0.2, 0.6, 198), 0.95, 0.94], [f"p{i // 2}" for i in range(200)]
    believed, robust = (learn_bands(pairs(values, prompts), 0.95, exceptions) for exceptions in (0, 1))
    assert believed.copy_above == 0.95
    assert (robust.copy_above, robust.n_exceptions) == (max(values[:198]), 1)
    assert band_of(0.9, robust) == "copy"
    assert robust.near_above <= robust.copy_above
    # More exceptions than one in fifty are not granted.
    assert learn_bands(pairs(values, prompts), 0.95, 10).n_exceptions == 2
    assert learn_bands(pairs(values[-98:], prompts[-98:]), 0.95, 1).n_exceptions == 0


@pytest.mark.parametrize("exceptions", [0, 1, 2])
def test_the_bound_covers_at_its_level_with_exceptions(exceptions):
    n, rounds = 100, 4000
    draws = np.sort(np.random.default_rng(1).random((rounds, n)), axis=1)
    covered = np.mean(1 - draws[:, -1 - exceptions] <= false_match_bound(n, exceptions))
    assert abs(covered - 0.95) < 4 * np.sqrt(0.95 * 0.05 / rounds)


def two(n, samples, neighbours, correlation, seed):
    """Pairs of harmless prompts whose similarities by two instruments go together, to a degree."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((n, samples, neighbours))
    noise = rng.standard_normal((2, n, samples, neighbours))
    first, second = (np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own for own in noise)
    return [
        Pair(f"p{i}", f"{i}-{j}", float(first[i, j, k]), float(second[i, j, k]))
        for i in range(n)
        for j in range(samples)
        for k in range(neighbours)
    ]


def copies(found, bands):
    return {pair.prompt for pair in found if band_of(pair.similarity, bands, pair.verified) == "copy"}


def alone(found, instrument, exceptions):
    """Prompts that one of the instruments would call copies by itself."""
    one = [Pair(p.prompt, p.sample, p.verified if instrument else p.similarity) for p in found]
    return copies(one, learn_bands(one, 0.95, exceptions))


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("exceptions", [0, 1, 2])
def test_above_both_lines_lies_nobody_whom_either_would_not_call_a_copy(correlation, exceptions):
    found = two(120, 3, 2, correlation, 1)
    bands = learn_bands(found, 0.95, exceptions, verifying=True)
    assert (bands.n_samples, bands.n_prompts, bands.n_exceptions) == (360, 120, exceptions)
    assert copies(found, bands) <= alone(found, 0, exceptions) & alone(found, 1, exceptions)
    assert len(alone(found, 0, exceptions)) == len(alone(found, 1, exceptions)) == exceptions


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_the_rate_and_bound_of_one_line_hold_for_two(correlation):
    """Of further harmless prompts at most (e + 1) / (n + 1) lie above both lines, however the instruments agree."""
    n, exceptions, rounds, rates = 60, 1, 150, []
    for seed in range(rounds):
        bands = learn_bands(two(n, 2, 2, correlation, 2 * seed), 0.95, exceptions, verifying=True)
        rates.append(len(copies(two(400, 2, 2, correlation, 2 * seed + 1), bands)) / 400)
    error = np.std(rates) / np.sqrt(rounds)
    assert np.mean(rates) < (bands.n_exceptions + 1) / (n + 1) + 4 * error
    assert np.mean(np.array(rates) <= false_match_bound(n, bands.n_exceptions)) > 0.9


def test_equal_instruments_give_the_line_of_one():
    found = [Pair(p.prompt, p.sample, p.similarity, p.similarity) for p in two(100, 2, 1, 0.0, 3)]
    both, one = (learn_bands(found, 0.9, 1, verifying=verifying) for verifying in (True, False))
    assert both.copy_above == both.verified_above == one.copy_above
    assert one.verified_above is None
    assert both.near_above == one.near_above


def test_what_cannot_be_verified_is_no_copy_and_lowers_nobody_s_line():
    found = two(60, 1, 1, 0.5, 4)
    bands = learn_bands(found, 0.9, 0, verifying=True)
    assert band_of(9.0, bands, None) == "near"
    assert band_of(9.0, bands, 9.0) == "copy"
    assert band_of(9.0, bands, bands.verified_above) == "near"
    assert band_of(-9.0, bands, 9.0) == "none"
    blind = [*found, Pair("flat", "flat", 9.0, None)]
    assert learn_bands(blind, 0.9, 0, verifying=True).verified_above >= bands.verified_above
