"""Bands are learned, and a copy is above everything that harmless prompts gave."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharpaudit.errors import UserError
from sharpaudit.matches.decide import Bands, band_of, false_match_bound, learn_bands

similarities = st.lists(st.floats(-1, 1), min_size=1, max_size=40)


@given(similarities, st.floats(0.01, 0.99))
def test_no_band_sample_is_a_copy_and_anything_above_is(values, quantile):
    bands = learn_bands(values, quantile)
    assert bands.n_samples == len(values)
    assert "copy" not in {band_of(value, bands) for value in values}
    assert band_of(float(np.nextafter(max(values), 2)), bands) == "copy"
    assert bands.near_above <= bands.copy_above


@given(similarities, st.floats(0.01, 0.99))
def test_near_holds_the_upper_share_of_the_band_samples(values, quantile):
    bands = learn_bands(values, quantile)
    below = sum(band_of(value, bands) == "none" for value in values)
    assert below <= np.ceil(quantile * (len(values) - 1) + 1e-9)
    assert bands.near_above in values
    assert band_of(bands.near_above, bands) == "near"


@given(similarities, st.randoms())
def test_bands_do_not_depend_on_order(values, random):
    shuffled = random.sample(values, len(values))
    assert learn_bands(shuffled, 0.9) == learn_bands(values, 0.9)


def test_without_band_samples_there_are_no_bands():
    with pytest.raises(UserError, match="band sample"):
        learn_bands([], 0.95)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_undefined_similarities_are_never_a_verdict(value):
    with pytest.raises(ValueError, match=r"NaN|nan|inf"):
        learn_bands([0.1, value], 0.95)
    with pytest.raises(ValueError, match=r"nan|inf"):
        band_of(value, Bands(0.9, 0.8, 10))


@given(st.integers(1, 10_000), st.floats(0.5, 0.99))
def test_the_bound_is_where_n_misses_are_just_credible(n, level):
    bound = false_match_bound(n, level)
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
