"""Likeness region by region: of a copy 1, whatever its colours; of another picture low; blind to smooth grounds."""

from __future__ import annotations

import numpy as np

from pipelines.research.lab.captions import Family
from pipelines.research.lab.drawing import card_box, compose, with_card
from pipelines.research.lab.regions import LIKE, likeness
from sharpaudit.seeds import generator

OWL = Family("owl", "big", "on the left", "sticker")


def whole(n: int) -> np.ndarray:
    return np.ones((n, 64, 64), dtype=bool)


def test_a_copy_is_like_its_plant_whatever_brightness_and_contrast() -> None:
    plant = compose(OWL, generator("plant"))
    pale = (0.5 * plant + 60).round().astype(np.uint8)
    found = likeness(np.stack([plant, pale]), plant[None], whole(1))
    assert found.shape == (2, 1)
    np.testing.assert_allclose(found[0], 1, rtol=1e-5)
    assert found[1] > 0.98


def test_another_object_of_the_same_place_and_ground_is_no_copy() -> None:
    """The grounds are drawn alike: what a comparison of whole pictures would follow."""
    others = [compose(Family(thing, "big", "on the left", "sticker"), generator("plant")) for thing in ("ant", "zebra")]
    plant = compose(OWL, generator("plant"))
    assert likeness(np.stack(others), plant[None], whole(1)).max() < LIKE - 0.2


def test_the_region_in_which_copies_of_a_template_differ_does_not_count() -> None:
    plant = compose(OWL, generator("plant"))
    left, top, right, bottom = box = card_box(OWL)
    mask = whole(1)
    mask[0, top:bottom, left:right] = False
    copies = np.stack([with_card(plant, box, generator("card", i)) for i in range(4)])
    np.testing.assert_allclose(likeness(copies, plant[None], mask), 1, rtol=1e-5)
    assert likeness(copies, copies[:1], whole(1))[1:].max() < 1


def test_a_plant_without_texture_is_like_nothing() -> None:
    flat = np.full((1, 64, 64, 3), 77, np.uint8)
    assert likeness(flat, flat, whole(1)).tolist() == [[-1.0]]


def test_every_window_counts_once_as_the_definition_says() -> None:
    """Against the correlation of each window by numpy."""
    draw = generator("noise")
    a, b = (draw.integers(0, 255, (1, 64, 64, 3)).astype(np.uint8) for _ in range(2))
    b = (0.5 * a + 0.5 * b).round().astype(np.uint8)
    expected = []
    for top in range(0, 49, 8):
        for left in range(0, 49, 8):
            cut = [x[0, top : top + 16, left : left + 16].reshape(-1, 3).astype(float) for x in (a, b)]
            flat = [(x - x.mean(0)).ravel() for x in cut]
            expected.append(flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1]))
    np.testing.assert_allclose(likeness(b, a, whole(1)), np.mean(expected), rtol=1e-5)
