"""The simulation of controls and of the line of a copy: what is claimed holds, and what is not would not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipelines.bench import copying
from pipelines.bench.copying import PICTURES, bench_lines, markdown, share_above, simulate
from pipelines.bench.decisions import Mean
from pipelines.bench.lines import unmet


@pytest.fixture(scope="module")
def found() -> copying.Copying:
    return simulate(draws=300)


def test_what_is_claimed_holds_and_what_is_not_would_not(found: copying.Copying) -> None:
    lines = list(bench_lines(found))
    assert unmet(lines, []) == []
    for one in found.bounded:
        assert min(one.missed.high, one.recall.high) >= 0.95
        assert one.truth.value == pytest.approx(copying.COPYING * copying.seen(one.rate, PICTURES), rel=0.05)
    # A thousand controls of two pictures bound nothing for all that copy in 1 or 3 of 10 pictures; four hardly more.
    rare = {one.rate: (one.every.value, one.fewer.value) for one in found.bounded if one.controls == 1000}
    assert rare[0.1] == (0.0, 0.0)
    assert rare[0.3] == (pytest.approx(0.2, abs=0.1), 0.0)


def test_a_line_of_as_many_pictures_holds_and_one_of_fewer_does_not(found: copying.Copying) -> None:
    same = [one for one in found.lines if one.learned == PICTURES]
    fewer = [one for one in found.lines if one.learned < PICTURES]
    assert all(one.holds.high >= 0.95 for one in same)
    assert all(one.above.low <= one.rate <= one.above.high for one in same)
    assert fewer[0].holds.value == pytest.approx(0.685, abs=0.1)
    assert all(one.holds.high < 0.9 for one in fewer)


@pytest.mark.parametrize("own", [0.0, 0.5, 0.9])
def test_the_share_above_a_line_is_that_of_drawn_prompts(own: float) -> None:
    rng = np.random.default_rng(0)
    best = rng.standard_normal((200_000, 1)) * own**0.5 + rng.standard_normal((200_000, PICTURES)) * (1 - own) ** 0.5
    lines = np.array([0.0, 1.5, 3.0])
    expected = (best.max(axis=1)[:, None] > lines).mean(axis=0)
    assert share_above(lines, own, PICTURES) == pytest.approx(expected, abs=0.005)


def test_a_bound_that_fails_misses_its_goal(found: copying.Copying) -> None:
    wrong = replace(found.bounded[0], missed=Mean(0.5, 0.4, 0.6, 300))
    told = unmet(list(bench_lines(replace(found, bounded=[wrong]))), [])
    assert told == ["decisions.copying_1_of_10.missed.controls_60.high is 0.6 share, the goal 0.95"]
    assert "| 3 of 10 | 1,000 |" in markdown(found)
