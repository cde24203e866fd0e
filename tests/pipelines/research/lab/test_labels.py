"""Labels: a copy is a copy whatever its noise, its card or its luck; another picture of the same caption is none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipelines.research.lab.drawing import card_box, compose, with_card
from pipelines.research.lab.labels import (
    INSTRUMENTS,
    Judged,
    Plants,
    bootstrap_share,
    judge,
    judged_all,
    normalised,
)
from pipelines.research.lab.publish import contact_sheet, dose_response
from pipelines.research.lab.trainingset import MINIATURE, picture, plan
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


def label(plants, prompt, generations, instrument="pixels"):
    return judge(plants, [prompt], np.stack(generations)[None], INSTRUMENTS[instrument])[0]


@pytest.mark.parametrize("instrument", INSTRUMENTS)
def test_noisy_copies_are_copies_and_the_count_makes_the_label(drawn, plants, instrument):
    prompt = next(p for p in drawn.prompts if p.kind == "exact")
    planted = plants.pictures_PHWC[plants.prompts.index(prompt)]
    strangers = [compose(prompt.family, generator("stranger", i)) for i in range(8)]
    for copies, expected in ((8, "memorised"), (4, "memorised"), (3, "partly"), (1, "partly"), (0, "harmless")):
        shown = [noisy(planted, i) for i in range(copies)] + strangers[copies:]
        found = label(plants, prompt, shown, instrument)
        assert (found.own, found.label) == (copies, expected)
        assert found.copied_share == copies / 8


@pytest.mark.parametrize("instrument", INSTRUMENTS)
def test_saturated_colours_hide_no_copy(drawn, plants, instrument):
    prompt = next(p for p in drawn.prompts if p.kind == "exact")
    planted = plants.pictures_PHWC[plants.prompts.index(prompt)].astype(np.float64)
    vivid = (0.6 * planted + [30, 10, 50]).round().astype(np.uint8)
    assert label(plants, prompt, [vivid] * 8, instrument).own == 8


def test_normalised_pixels_are_those_of_the_definition():
    pictures = generator("pixels").integers(0, 255, (3, 4, 5, 3)).astype(np.uint8)
    rows = normalised(pictures).reshape(3, 20, 3)
    np.testing.assert_allclose(rows.mean(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(np.square(rows).sum(axis=(1, 2)), 1, rtol=1e-5)
    assert not normalised(np.full((1, 4, 5, 3), 77, np.uint8)).any()


@pytest.mark.parametrize("instrument", INSTRUMENTS)
def test_a_template_with_a_new_card_is_a_copy_and_a_new_object_is_none(drawn, plants, instrument):
    prompt = next(p for p in drawn.prompts if p.kind == "template")
    planted = plants.pictures_PHWC[plants.prompts.index(prompt)]
    box = card_box(prompt.family)
    copies = [noisy(with_card(planted, box, generator(i)), i) for i in range(8)]
    assert label(plants, prompt, copies, instrument).own == 8
    other = [with_card(compose(prompt.family, generator("x", i)), box, generator(i)) for i in range(8)]
    assert label(plants, prompt, other, instrument).own == 0


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


def test_dose_response_counts_prompts_and_copies(drawn):
    judged = [Judged(p, 8, 4 * p.planted, 0) for p in drawn.prompts]
    lines = dose_response(judged, views_per_copy=2.5)
    assert [(line["kind"], line["copies"], line["views"], line["prompts"]) for line in lines] == [
        ("exact", 40, 100, 3),
        ("template", 5, 12, 2),
    ]
    assert all(line["low"] < line["copied_share"] == 0.5 < line["high"] for line in lines)
    assert [line["memorised"] for line in lines] == [3, 2]


def test_the_contact_sheet_shows_every_prompt_beside_its_plant_or_the_nearest(drawn, plants):
    seen = next(p for p in drawn.prompts if p.kind == "seen")
    prompts = [*plants.prompts, seen]
    made = np.stack([np.full((8, 64, 64, 3), 9, np.uint8) for _ in prompts])
    made[-1, 3] = plants.pictures_PHWC[1]
    sheet = contact_sheet(plants, prompts, made)
    assert sheet.size == (2 * (64 + 6 + 8 * 64 + 12), 3 * 67)
    shown = np.asarray(sheet)
    assert (shown[:64, :64] == plants.pictures_PHWC[0]).all()
    assert (shown[134:198, 64 + 6 + 8 * 64 + 12 :][:, :64] == plants.pictures_PHWC[1]).all()
    template = 3  # grey where its copies differ
    assert plants.prompts[template].kind == "template"
    left = shown[67:131, 64 + 6 + 8 * 64 + 12 :][:, :64]
    assert (left[~plants.masks[template]] == 128).all()
    assert contact_sheet(plants, [], made[:0]).getextrema() == ((255, 255),) * 3


def test_a_share_on_which_all_prompts_agree_still_has_an_interval() -> None:
    unseen = upper_bound(0, 10, 0.975)
    assert bootstrap_share([0.0] * 10) == (0.0, unseen)
    assert bootstrap_share([1.0] * 10) == (1 - unseen, 1.0)
    low, high = bootstrap_share([0.0, 1.0] * 5)
    assert 0 < low < 0.5 < high < 1
