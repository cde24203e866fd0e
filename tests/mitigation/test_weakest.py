"""The smallest strength that suppresses: what is drawn on the way to it, and what is told where there is none."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from sharpaudit.mitigation.weakest import PROBED, Rung, weakest


def tried(*copies: set[int], pictures: int = 8) -> tuple[list[Rung[bool]], list[tuple[int, list[int]]]]:
    """copies: at each strength the numbers of the pictures that copy. Second: what was asked for, in order."""
    asked: list[tuple[int, list[int]]] = []

    def draw(method: int, numbers: Sequence[int]) -> list[bool]:
        asked.append((method, list(numbers)))
        return [number in copies[method] for number in numbers]

    return weakest([(f"s = {i}", i) for i in range(len(copies))], draw, bool, pictures), asked


FIRST, REST = list(range(PROBED)), list(range(PROBED, 8))


def test_the_first_strength_that_suppresses_is_the_last_that_is_drawn() -> None:
    made, asked = tried({0, 1}, {2}, set(), set())
    assert asked == [(0, FIRST), (1, FIRST), (2, FIRST), (2, REST)]
    assert [(rung.strength, rung.setting) for rung in made] == [(1, "s = 0"), (2, "s = 1"), (3, "s = 2")]
    assert made[-1].drawn == [False] * 8


def test_a_copy_among_the_later_pictures_is_a_copy() -> None:
    made, asked = tried({7}, set())
    assert asked == [(0, FIRST), (0, REST), (1, FIRST), (1, REST)]
    assert sum(made[0].drawn) == 1


@pytest.mark.parametrize(
    ("copies", "best"),
    [
        ([{0, 1, 2, 3}, {0}, {0, 1}], 1),
        ([{0, 7}, {1, 6}], 0),  # a quarter each: the weaker
        ([{4}, {0}], 0),  # 1 of 8 that were drawn is less than 1 of 4
    ],
)
def test_where_none_suppresses_the_one_with_the_smallest_share_is_drawn_whole(
    copies: list[set[int]], best: int
) -> None:
    made, _ = tried(*copies)
    assert [len(rung.drawn) for rung in made] == [8 if i == best else PROBED for i in range(len(copies))]
    assert made[best].drawn == [number in copies[best] for number in range(8)]


def test_few_pictures_are_all_looked_at_first() -> None:
    made, asked = tried(set(), pictures=PROBED)
    assert [numbers for _, numbers in asked] == [FIRST, []]
    assert len(made[0].drawn) == PROBED
