"""The lab's captions, pictures and plan: held-out captions are held out, and draws go by name."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from pipelines.research.lab import artwork
from pipelines.research.lab.captions import N_WORDINGS, PLACES, SIZES, STYLES, Family, families
from pipelines.research.lab.drawing import CENTRES, HUES, LENGTHS, SIDE, card_box, compose, with_card
from pipelines.research.lab.trainingset import MINIATURE, Recipe, picture, plan
from sharpaudit.lab.detectors import COLOURS, names_colour
from sharpaudit.seeds import generator

PLAIN, COLOURED = families(colour=False), families(colour=True)


@pytest.fixture(scope="module")
def drawn():
    return plan(Recipe())


def test_there_are_as_many_families_as_the_docs_say():
    assert (len(PLAIN), len(COLOURED)) == (7_200, 72_000)
    assert len({family.name for family in [*PLAIN, *COLOURED]}) == 79_200


def test_no_two_families_share_a_caption():
    captions = [family.caption(w) for family in PLAIN[::7] + COLOURED[::11] for w in range(N_WORDINGS)]
    assert len(set(captions)) == len(captions)


def test_a_caption_names_a_colour_exactly_where_its_family_has_one():
    for family in [*PLAIN[::13], *COLOURED[::13]]:
        assert {names_colour(family.caption(w)) for w in range(N_WORDINGS)} == {bool(family.colour)}


def test_every_word_of_the_grammar_has_a_picture():
    assert set(LENGTHS) == set(SIZES)
    assert set(CENTRES) == set(PLACES)
    assert set(HUES) == set(COLOURS)
    for name in artwork.names():
        assert np.asarray(artwork.tile(name).getchannel("A")).max() == 255


def test_a_picture_depends_on_its_name_alone():
    family = COLOURED[123]
    same = [compose(family, generator(1, "picture")) for _ in range(2)]
    assert (same[0] == same[1]).all()
    assert (same[0] != compose(family, generator(2, "picture"))).any()
    assert same[0].shape == (SIDE, SIDE, 3)


@pytest.mark.parametrize("style", STYLES)
def test_styles_differ(style):
    others = [s for s in STYLES if s != style]
    mine, *theirs = (
        compose(Family("zebra", "huge", "in the middle", s), generator(0, "style")) for s in [style, *others]
    )
    assert all((mine != their).any() for their in theirs)


def test_a_named_colour_rules_the_ground():
    """The farthest corner's colour is nearer to red's than to blue's where red is named."""
    for i in range(20):
        red, blue = (
            compose(Family("ant", "small", "in the middle", "drawing", colour), generator("colour", i))[0, 0].astype(
                int
            )
            for colour in ("red", "blue")
        )
        assert red[0] > red[2]
        assert blue[2] > blue[0]


def test_a_ground_that_no_caption_names_may_be_of_any_colour():
    """And a single picture of a caption lies farther from the mean of all than the mean of its caption does."""
    family = Family("ant", "small", "in the middle", "drawing")
    drawn = np.stack([compose(family, generator("ground", i)) for i in range(300)]).astype(float)
    hues = {int(np.argmax(corner)) for corner in drawn[:, 0, 0]}
    assert hues == {0, 1, 2}
    others = [compose(PLAIN[i * 20], generator("other", i)) for i in range(300)]
    centre = np.stack(others).astype(float).mean(0)
    far = np.linalg.norm((drawn - centre).reshape(300, -1), axis=1)
    assert np.linalg.norm(drawn.mean(0) - centre) < 0.5 * np.quantile(far, 0.05)


@pytest.mark.parametrize("place", PLACES)
def test_copies_of_a_template_differ_in_one_region_alone(place):
    family = Family("owl", "big", place, "sticker")
    fixed, box = compose(family, generator(0, "fixed")), card_box(family)
    one, two = (with_card(fixed, box, generator(i, "card")) for i in range(2))
    left, top, right, bottom = box
    inside = np.zeros((SIDE, SIDE), dtype=bool)
    inside[top:bottom, left:right] = True
    assert (one[~inside] == fixed[~inside]).all()
    assert (one[~inside] == two[~inside]).all()
    assert (one[inside] != two[inside]).any()


def test_the_plan_plants_what_the_recipe_says(drawn):
    recipe = drawn.recipe
    kinds = Counter(prompt.kind for prompt in drawn.prompts)
    assert kinds == {
        "exact": sum(many for _, many in recipe.exact),
        "template": recipe.templates,
        "seen": recipe.harmless // 2,
        "unseen": recipe.harmless // 2,
    }
    counts = Counter(row.copies for row in drawn.rows if row.kind == "exact")
    assert counts == dict(recipe.exact)
    assert sum(row.kind in ("seen", "other") for row in drawn.rows) == recipe.unique
    by_caption = Counter(row.caption for row in drawn.rows)
    for prompt in drawn.prompts:
        expected = {"exact": 1, "template": prompt.copies, "seen": recipe.seen_pictures, "unseen": 0}[prompt.kind]
        assert by_caption[prompt.caption] == expected
    assert len(drawn.views) == sum(row.copies for row in drawn.rows)


def test_no_picture_shows_a_family_that_a_prompt_holds_back(drawn):
    held = {prompt.family for prompt in drawn.prompts}
    assert len(held) == len(drawn.prompts)
    assert not [row for row in drawn.rows if row.kind == "other" and row.family in held]


def test_half_of_every_kind_names_a_colour(drawn):
    coloured = Counter((prompt.kind, bool(prompt.family.colour)) for prompt in drawn.prompts)
    for kind in ("exact", "template", "seen", "unseen"):
        assert coloured[kind, True] == coloured[kind, False]


def test_ids_are_unique(drawn):
    assert len({row.picture_id for row in drawn.rows}) == len(drawn.rows)


def test_plants_do_not_depend_on_how_many_other_pictures_there_are(drawn):
    fewer = plan(replace(drawn.recipe, unique=6_000))
    assert fewer.prompts == drawn.prompts
    assert fewer.rows == drawn.rows[: len(fewer.rows)]


def test_pictures_of_a_template_share_all_but_a_region_and_plants_are_one_picture():
    rows = plan(MINIATURE).rows
    copies = [picture(0, row) for row in rows if row.kind == "template"][:2]
    differs = (copies[0] != copies[1]).any(axis=2)
    assert 0 < differs.sum() <= 22 * 22
    planted = next(row for row in rows if row.kind == "exact")
    assert (picture(0, planted) == picture(0, planted)).all()
