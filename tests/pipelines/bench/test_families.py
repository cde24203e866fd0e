"""The simulation of families and styles: what is claimed holds in it, and what is not claimed does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipelines.bench import families
from pipelines.bench.decisions import Mean
from pipelines.bench.families import EACH, bench_lines, markdown, simulate
from pipelines.bench.lines import unmet


@pytest.fixture(scope="module")
def found() -> families.Simulated:
    return simulate(draws=12)


def test_a_rate_is_that_of_a_random_prompt_of_a_random_family_and_of_no_other(found: families.Simulated) -> None:
    for one in found.moving:
        assert one.members.low <= 0.012
        assert one.members.high >= 0.008
    far = [one for one in found.moving if one.shift == 2]
    assert all(one.prompts.low > 0.03 for one in far)


def test_flags_by_each_prompt_lose_no_memorised_prompt_of_a_family(found: families.Simulated) -> None:
    by = {(rule.level, rule.rule): rule for rule in found.rules}
    each = by["p", EACH]
    assert min(each.single.value, each.one.value, each.every.value) > 0.85
    # Every p of a family as a whole loses the one that is memorised among harmless members.
    assert max(rule.one.value for rule in found.rules if rule is not each) < 0.1
    # 999 calibration prompts put twenty times the smallest p out of reach.
    assert by["p", "members x smallest p"].every.value == by["q", "members x smallest p"].every.value == 0
    assert by["q", "Simes"].every.value > 0.2


def test_a_style_that_nothing_calibrates_ranks_high_and_is_not_flagged(found: families.Simulated) -> None:
    far = found.styled[-1]
    assert far.ranked.low > 0.15
    assert far.flagged.value == 0
    assert far.merged.low > 0.012


def test_a_rate_that_is_exceeded_misses_its_goal(found: families.Simulated) -> None:
    wrong = replace(found, moving=[replace(found.moving[0], members=Mean(0.03, 0.02, 0.04, 12))], rules=[], styled=[])
    (said,) = unmet(list(bench_lines(wrong)), [])
    assert said.startswith("families.shift_0.correlation_1.members_low is 0.02")


def test_the_tables_have_a_row_for_each_case(found: families.Simulated) -> None:
    text = markdown(found)
    assert text.count("\n| p | ") == 6
    assert text.count("\n| 2 | ") == 3
    assert text.count("\n| 1.5 | ") == 1
