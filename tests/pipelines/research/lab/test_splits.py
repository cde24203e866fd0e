"""Splits: their sizes, one mix, who moves when a label changes, and who may never be in a telling one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipelines.research.lab.labels import Judged
from pipelines.research.lab.publish import sizes
from pipelines.research.lab.splits import IN_DEVELOPMENT, SIZES, TELLING, fitted, split
from pipelines.research.lab.trainingset import MINIATURE, Plan, Prompt, Recipe, plan
from sharpaudit.errors import UserError

RECIPE = replace(MINIATURE, unique=120, exact=((40, 4),), templates=2, template_copies=5, harmless=80)
FEW = {"fit": 24, "calibration": 20, "development": 12, "test": 16}
TWO = {"exact": 2, "template": 1}


@pytest.fixture(scope="module")
def drawn() -> Plan:
    return plan(RECIPE)


@pytest.fixture(scope="module")
def judged(drawn: Plan) -> list[Judged]:
    return [Judged(p, 8, 8 * p.planted, 0) for p in drawn.prompts]


def harmless(drawn: Plan) -> list[Prompt]:
    return [prompt for prompt in drawn.prompts if not prompt.planted]


def test_splits_have_their_sizes_and_the_same_mix(drawn: Plan, judged: list[Judged]) -> None:
    found = split(judged, FEW, TWO, seed=0)
    assert set(found) == {p.caption for p in drawn.prompts}
    for name, size in FEW.items():
        mine = [p for p in harmless(drawn) if found[p.caption] == name]
        assert len(mine) == size
        assert abs(sum(p.kind == "seen" for p in mine) - size / 2) <= 1
        assert abs(sum(bool(p.family.colour) for p in mine) - size / 2) <= 2
    for kind, many in (("exact", 4), ("template", 2)):
        memorised = sorted(found[p.caption] for p in drawn.prompts if p.kind == kind)
        assert memorised == ["development"] * TWO[kind] + ["test"] * (many - TWO[kind])


def test_a_prompt_that_turns_out_to_copy_moves_no_other_but_its_replacement(judged: list[Judged]) -> None:
    before = split(judged, FEW, TWO, seed=0)
    for name in ("fit", "calibration", "development", "test", "spare"):
        i = next(i for i, e in enumerate(judged) if not e.prompt.planted and before[e.prompt.caption] == name)
        neighbour = Judged(judged[i].prompt, 8, 0, 3)
        after = split([*judged[:i], neighbour, *judged[i + 1 :]], FEW, TWO, seed=0)
        moved = {caption for caption in before if before[caption] != after[caption]}
        assert after[neighbour.prompt.caption] == (name if name in ("development", "test") else "spare")
        assert {before[caption] for caption in moved - {neighbour.prompt.caption}} <= {"spare"}
        assert len(moved) <= 2
        rest = [e.prompt.caption for e in judged if not e.prompt.planted and e.prompt != neighbour.prompt]
        assert all(sum(after[caption] == s for caption in rest) == size for s, size in FEW.items())


def test_a_barred_prompt_is_in_no_telling_split_and_the_mix_holds(drawn: Plan, judged: list[Judged]) -> None:
    """Also when it was to replace a neighbour, and of plants."""
    before = split(judged, FEW, TWO, seed=0)
    barred = {p.family.name for p in harmless(drawn)[::4]}
    barred |= {p.family.name for p in drawn.prompts if p.planted and before[p.caption] == "test"}
    names = {p.caption: p.family.name for p in drawn.prompts}
    assert any(before[caption] in TELLING for caption in names if names[caption] in barred)
    neighbour = next(i for i, e in enumerate(judged) if not e.prompt.planted and before[e.prompt.caption] == "test")
    labelled = [replace(entry, other=2) if i == neighbour else entry for i, entry in enumerate(judged)]
    after = split(labelled, FEW, TWO, 0, frozenset(barred))
    assert not [caption for caption, name in after.items() if name in TELLING and names[caption] in barred]
    for name, size in FEW.items():
        mine = [p for p in harmless(drawn) if after[p.caption] == name and p != labelled[neighbour].prompt]
        assert len(mine) == size
        assert abs(sum(bool(p.family.colour) for p in mine) - size / 2) <= 2
    # Dealt again with what it now holds in fit and development barred: nobody moves.
    held = {names[caption] for caption, name in after.items() if name in ("fit", "development")}
    assert split(labelled, FEW, TWO, 0, frozenset(barred | held)) == after


def test_no_spare_prompt_that_may_be_there_is_one_line(drawn: Plan, judged: list[Judged]) -> None:
    before = split(judged, FEW, TWO, seed=0)
    spare = frozenset(e.prompt.family.name for e in judged if before[e.prompt.caption] == "spare")
    i = next(i for i, e in enumerate(judged) if not e.prompt.planted and before[e.prompt.caption] == "calibration")
    labelled = [*judged[:i], replace(judged[i], other=1), *judged[i + 1 :]]
    with pytest.raises(UserError, match="no spare harmless prompt is left for the calibration split"):
        split(labelled, FEW, TWO, 0, spare)


def test_too_few_memorised_prompts_are_said(drawn: Plan) -> None:
    with pytest.raises(UserError, match="0 exact plants and 0 template plants are memorised: too few"):
        split([Judged(p, 8, 0, 0) for p in drawn.prompts], {"test": 10}, TWO, seed=0)


def test_a_smaller_recipe_is_split_in_proportion(drawn: Plan) -> None:
    assert sizes(Recipe()) == (SIZES, IN_DEVELOPMENT)
    few, in_development = sizes(RECIPE)
    assert set(in_development.values()) <= {0, 1}
    assert 0 < few["calibration"] <= few["fit"] < RECIPE.harmless / 2
    judged = [Judged(prompt, 8, 0, 0) for prompt in drawn.prompts]
    with pytest.raises(UserError, match="too few for splits of 1,000 fit"):
        split(judged, *sizes(Recipe()), 0)


def test_the_names_that_are_kept_are_families_of_the_grammar() -> None:
    kept = fitted()
    assert len(kept) >= 3_000
    assert all(name.count("/") in (3, 4) for name in kept)
