"""Choices come from the development split alone, and only what was chosen is drawn further and attacked."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from pipelines.bench.mitigation.drawing import MANY, PICTURES
from pipelines.bench.mitigation.measuring import measure
from pipelines.bench.mitigation.settings import Rung, Setting
from sharpaudit.errors import UserError
from tests.support.suppressed import made

METHODS = ("delay", "tokens", "sail")
GOOD = {"development": {("delay", 2), ("tokens", 1)}, "test": {("delay", 4), ("tokens", 3)}}
"""Strengths that suppress everything, in each split."""


class Drawn:
    """Stands for Bench: what is asked of it, and settings that are made."""

    unattackable: str | None = None

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, int, int]] = []
        self.attacks: list[tuple[str, int, tuple[str, ...]]] = []

    def prompts(self, split: str, sizes: Mapping[str, int]) -> dict[str, str]:
        self.split, self.sizes = split, sizes
        return {}

    def setting(self, rung: Rung, prompts: Mapping[str, str], pictures: int) -> Setting:
        self.asked.append((self.split, rung.name, rung.strength, pictures))
        copies = [0] * 10 if (rung.name, rung.strength) in GOOD[self.split] else [2] * 10
        return made(rung.name, rung.strength, copies, 0.8 - 0.1 * rung.strength, 0.4)

    def controls(self, split: str, n: int) -> dict[str, int]:
        return {f"{split} control": 7}

    def attacked(self, rung: Rung, targets: Mapping[str, int]) -> dict[str, list[bool]]:
        self.attacks.append((rung.name, rung.strength, tuple(targets)))
        return {prompt: [True] for prompt in targets}


def test_the_test_split_chooses_nothing() -> None:
    bench = Drawn()
    found = measure(bench, METHODS, "test", None, lambda _: None)  # type: ignore[arg-type]
    assert (found.best["delay"], found.best["tokens"]) == (2, 1)
    assert [(one.method, one.strength) for one in found.more[1:3]] == [("tokens", 1), ("delay", 2)] or [
        (one.method, one.strength) for one in found.more[1:3]
    ] == [("delay", 2), ("tokens", 1)]
    assert found.settings[0].method == found.more[0].method == "none"
    assert {pictures for split, *_, pictures in bench.asked if split == "development"} == {PICTURES}
    many = [(name, strength) for split, name, strength, pictures in bench.asked if pictures == MANY]
    assert many == [(one.method, one.strength) for one in found.more]
    first_test = next(i for i, (split, *_) in enumerate(bench.asked) if split == "test")
    assert all(split == "test" for split, *_ in bench.asked[first_test:])


def test_what_is_suppressed_is_attacked_and_without_a_method_what_copies() -> None:
    bench = Drawn()
    found = measure(bench, METHODS, "test", None, lambda _: None)  # type: ignore[arg-type]
    copying = tuple(f"p{i}" for i in range(10))
    # At what development chose nothing is suppressed on this test split.
    towards = {(name, strength): some for name, strength, some in bench.attacks if some != ("test control",)}
    assert towards.pop(("none", 0)) == copying
    assert set(towards.values()) == {()}
    assert [one.recovered for one in found.attacked] == [10, 0, 0, 0]
    assert [one.controls_copied for one in found.attacked] == [1] * 4
    bench.unattackable = "no embeddings"
    told: list[str] = []
    assert list(measure(bench, METHODS, "test", None, told.append).attacked) == []  # type: ignore[arg-type]
    assert told[-1] == "no embeddings"


def test_a_development_split_is_told_by_itself() -> None:
    bench = Drawn()
    found = measure(bench, METHODS, "development", 3, lambda _: None)  # type: ignore[arg-type]
    assert {split for split, *_ in bench.asked} == {"development"}
    assert (len(found.settings), found.more, found.attacked) == (1 + 4 + 4 + 3, (), ())
    assert bench.sizes["exact"] == 3
    with pytest.raises(UserError, match="no method is left"):
        measure(bench, [], "development", None, lambda _: None)  # type: ignore[arg-type]
