"""Which strength is chosen, and how methods compare, on made settings."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipelines.bench.mitigation.choice import at_similarity, chosen, compared, level_of, lost, tried_further
from tests.support.suppressed import NONE, made


def test_the_strength_that_suppresses_most_within_a_quarter_of_the_alignment_is_chosen() -> None:
    found = [
        NONE,
        made("a", 1, [0] * 4 + [1] * 6, 0.7, 0.38),
        made("a", 2, [0] * 6 + [1] * 4, 0.6, 0.32),
        made("a", 3, [0] * 10, 0.5, 0.1),
        made("b", 1, [0] * 8 + [1] * 2, 0.5, 0.31),
        made("c", 1, [0] * 10, 0.5, 0.2),
        made("c", 2, [0] * 10, 0.5, 0.25),
        made("sail", 1, [2] * 10, 0.8, 0.4),
        made("d", 1, [0] * 6 + [1] * 4, 0.6, 0.35),
    ]
    best = chosen(found)
    assert {name: one.strength for name, one in best.items()} == {"b": 1, "d": 1, "a": 2, "sail": 1, "c": 2}
    assert list(best) == ["b", "d", "a", "sail", "c"], "what loses too much stands behind what suppresses nothing"
    assert [one.method for one in tried_further(best)] == ["b", "d", "a", "sail"]
    assert lost(found[4], NONE) == pytest.approx(1 - 0.31 / 0.4)


def test_a_curve_is_read_where_it_first_falls_to_a_similarity() -> None:
    similarity, alignment = np.array([0.8, 0.6, 0.7, 0.4]), np.array([1.0, 0.8, 0.9, 0.2])
    assert at_similarity(similarity, alignment, 0.7) == pytest.approx(0.9)
    assert at_similarity(similarity, alignment, 0.5) == pytest.approx(0.2 + 0.7 / 3)
    assert math.isnan(at_similarity(similarity, alignment, 0.3))
    assert at_similarity(similarity, alignment, 0.8) == 1
    assert at_similarity(np.array([0.8, 0.8]), np.array([1.0, 0.5]), 0.8) == 1


def test_methods_are_compared_at_one_similarity_prompt_by_prompt() -> None:
    found = [
        NONE,
        made("sail", 1, [1] * 10, 0.5, 0.3),
        made("same", 1, [1] * 10, 0.5, 0.3),
        made("better", 1, [1] * 10, 0.5, 0.38),
        made("weak", 1, [1] * 10, 0.79, 0.4),
    ]
    assert level_of(found) == pytest.approx(0.6)
    told = compared(found)
    assert set(told) == {"sail", "same", "better"}, "one that does not come there has no value"
    assert told["better"].alignment == pytest.approx(1 - (0.02 / 0.4) * 2 / 3)
    assert told["better"].more == pytest.approx(0.08 / 0.4 * 2 / 3)
    assert told["better"].more_interval.low <= told["better"].more <= told["better"].more_interval.high
    # Prompts are drawn together: what does the same differs in no replicate, however much these differ.
    assert told["same"].interval.low < told["same"].interval.high
    assert (told["same"].more_interval.low, told["same"].more_interval.high) == (0, 0)
    assert told["sail"].more == 0
