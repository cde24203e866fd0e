"""Labels: a copy is a copy whatever its noise, its card or its luck; another picture of the same caption is none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipelines.research.lab.drawing import card_box, compose, with_card
from pipelines.research.lab.labels import Judged, Plants, bootstrap_share, judge, judged_all, normalised, split
from pipelines.research.lab.publish import DEVELOPMENT_MEMORISED, SPLITS, contact_sheet, dose_response, sizes
from pipelines.research.lab.trainingset import MINIATURE, Recipe, picture, plan
from sharpaudit.errors import UserError
from sharpaudit.seeds import generator
from sharpaudit.statistics.intervals import upper_bound

RECIPE = replace(MINIATURE, unique=120, exact=((40, 3),), templates=2, template_copies=5, harmless=40)


@pytest.fixture(scope="module")
def drawn():
    return plan(RECIPE)


@pytest.fixture(scope="module")
def plants(drawn):
    return Plants(drawn, np.stack([picture(RECIPE.seed, row) for row in drawn.rows]))


def noisy(picture_HWC, name, amount=12):
    noise = generator("noise", name).normal(0, amount, picture_HWC.shape)
    return (picture_HWC + noise).round().clip(0, 255).astype(np.uint8)


def label(plants, prompt, generations):
    return judge(plants, [prompt], np.stack(generations)[None])[0]


def test_noisy_copies_are_copies_and_the_count_makes_the_label(drawn, plants):
    prompt = next(p for p in drawn.prompts if p.kind == "exact")
    planted = plants.pictures_PHWC[plants.prompts.index(prompt)]
    strangers = [compose(prompt.family, generator("stranger", i)) for i in range(8)]
    for copies, expected in ((8, "memorised"), (4, "memorised"), (3, "partly"), (1, "partly"), (0, "harmless")):
        shown = [noisy(planted, i) for i in range(copies)] + strangers[copies:]
        found = label(plants, prompt, shown)
        assert (found.own, found.label) == (copies, expected)
        assert found.copied_share == copies / 8


def test_saturated_colours_hide_no_copy(drawn, plants):
    prompt = next(p for p in drawn.prompts if p.kind == "exact")
    planted = plants.pictures_PHWC[plants.prompts.index(prompt)].astype(np.float64)
    vivid = (0.6 * planted + [30, 10, 50]).round().astype(np.uint8)
    assert label(plants, prompt, [vivid] * 8).own == 8


def test_normalised_pixels_are_those_of_the_definition():
    pictures = generator("pixels").integers(0, 255, (3, 4, 5, 3)).astype(np.uint8)
    rows = normalised(pictures).reshape(3, 20, 3)
    np.testing.assert_allclose(rows.mean(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(np.square(rows).sum(axis=(1, 2)), 1, rtol=1e-5)
    assert not normalised(np.full((1, 4, 5, 3), 77, np.uint8)).any()


def test_a_template_with_a_new_card_is_a_copy_and_a_new_ground_is_none(drawn, plants):
    prompt = next(p for p in drawn.prompts if p.kind == "template")
    planted = plants.pictures_PHWC[plants.prompts.index(prompt)]
    box = card_box(prompt.family)
    assert label(plants, prompt, [noisy(with_card(planted, box, generator(i)), i) for i in range(8)]).own == 8
    other = [with_card(compose(prompt.family, generator("x", i)), box, generator(i)) for i in range(8)]
    assert label(plants, prompt, other).own == 0


def test_another_prompt_s_picture_makes_a_neighbour(drawn, plants):
    seen = next(p for p in drawn.prompts if p.kind == "seen")
    own = [compose(seen.family, generator("own", i)) for i in range(8)]
    assert label(plants, seen, own).label == "harmless"
    found = label(plants, seen, [noisy(plants.pictures_PHWC[0], 0), *own[1:]])
    assert (found.own, found.other, found.label) == (0, 1, "neighbour")


def test_a_training_picture_that_is_no_plant_is_no_copy(drawn, plants):
    row = next(row for row in drawn.rows if row.kind == "seen")
    prompt = next(p for p in drawn.prompts if p.caption == row.caption)
    assert label(plants, prompt, [picture(RECIPE.seed, row)] * 8).label == "harmless"


def test_prompts_without_generations_are_harmless_by_the_screen(drawn):
    entries = judged_all(drawn.prompts, [])
    assert {(entry.label, entry.decided_by, entry.copied_share) for entry in entries} == {("harmless", "screen", None)}


def test_splits_have_their_sizes_and_the_same_mix(drawn):
    judged = [Judged(p, 8, 8 * p.planted, 0) for p in drawn.prompts]
    sizes = {"fit": 12, "calibration": 10, "development": 6, "test": 10}
    found = split(judged, sizes, 2, seed=0)
    assert set(found) == {p.caption for p in drawn.prompts}
    harmless = [p for p in drawn.prompts if not p.planted]
    for name, size in sizes.items():
        mine = [p for p in harmless if found[p.caption] == name]
        assert len(mine) == size
        assert abs(sum(p.kind == "seen" for p in mine) - size / 2) <= 1
        assert abs(sum(bool(p.family.colour) for p in mine) - size / 2) <= 2
    memorised = [found[p.caption] for p in drawn.prompts if p.planted]
    assert sorted(memorised) == ["development"] * 2 + ["test"] * 3


def test_a_prompt_that_turns_out_to_copy_moves_no_other_but_its_replacement(drawn):
    sizes = {"fit": 12, "calibration": 10, "development": 6, "test": 8}
    judged = [Judged(p, 8, 8 * p.planted, 0) for p in drawn.prompts]
    before = split(judged, sizes, 2, seed=0)
    for name in ("fit", "calibration", "development", "test", "spare"):
        i = next(i for i, e in enumerate(judged) if not e.prompt.planted and before[e.prompt.caption] == name)
        neighbour = Judged(judged[i].prompt, 8, 0, 3)
        after = split([*judged[:i], neighbour, *judged[i + 1 :]], sizes, 2, seed=0)
        moved = {caption for caption in before if before[caption] != after[caption]}
        assert after[neighbour.prompt.caption] == (name if name in ("development", "test") else "spare")
        assert {before[caption] for caption in moved - {neighbour.prompt.caption}} <= {"spare"}
        assert len(moved) <= 2
        harmless = [e.prompt.caption for e in judged if not e.prompt.planted and e.prompt != neighbour.prompt]
        assert all(sum(after[caption] == s for caption in harmless) == size for s, size in sizes.items())


def test_too_few_memorised_prompts_are_said(drawn):
    with pytest.raises(UserError, match="too few"):
        split([Judged(p, 8, 0, 0) for p in drawn.prompts], {"test": 10}, 2, seed=0)


def test_dose_response_counts_prompts_and_copies(drawn):
    judged = [Judged(p, 8, 4 * p.planted, 0) for p in drawn.prompts]
    lines = dose_response(judged, views_per_copy=2.5)
    assert [(line["kind"], line["copies"], line["views"], line["prompts"]) for line in lines] == [
        ("exact", 40, 100, 3),
        ("template", 5, 12, 2),
    ]
    assert all(line["low"] < line["copied_share"] == 0.5 < line["high"] for line in lines)
    assert [line["memorised"] for line in lines] == [3, 2]


def test_the_contact_sheet_shows_every_memorised_prompt(drawn, plants):
    memorised = [Judged(p, 8, 8, 0) for p in plants.prompts]
    generations = {p.caption: np.full((8, 64, 64, 3), 9, np.uint8) for p in plants.prompts}
    sheet = contact_sheet(plants, memorised, generations)
    assert sheet.size == (2 * (64 + 6 + 8 * 64 + 12), 3 * 67)
    assert (np.asarray(sheet)[:64, :64] == plants.pictures_PHWC[0]).all()


def test_a_share_on_which_all_prompts_agree_still_has_an_interval() -> None:
    unseen = upper_bound(0, 10, 0.975)
    assert bootstrap_share([0.0] * 10) == (0.0, unseen)
    assert bootstrap_share([1.0] * 10) == (1 - unseen, 1.0)
    low, high = bootstrap_share([0.0, 1.0] * 5)
    assert 0 < low < 0.5 < high < 1


def test_a_smaller_recipe_is_split_in_proportion_and_shows_a_blank_sheet(drawn, plants):
    assert sizes(Recipe()) == (SPLITS, DEVELOPMENT_MEMORISED)
    few, n_memorised = sizes(MINIATURE)
    assert n_memorised == 0
    assert 0 < few["calibration"] <= few["fit"] < MINIATURE.harmless / 2
    judged = [Judged(prompt, 8, 0, 0) for prompt in drawn.prompts]
    found = split(judged, few, n_memorised, 0)
    assert {name: list(found.values()).count(name) for name in ("fit", "calibration")} == {
        n: few[n] for n in ("fit", "calibration")
    }
    assert contact_sheet(plants, [], {}).getextrema() == ((255, 255),) * 3
    with pytest.raises(UserError, match="too few for splits of 1,000 fit"):
        split(judged, *sizes(Recipe()), 0)
