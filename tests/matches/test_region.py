"""Where a copy is: what was pasted is found where it was pasted, and nothing is found where nothing was."""

from __future__ import annotations

import numpy as np
import pytest

from sharpaudit.images import Pixels, resized
from sharpaudit.matches.alignment import SIDES
from sharpaudit.matches.region import CELL, DIFFERS, PLAIN, SAME, Region, locate


def textured(seed: int, height: int = 96, width: int = 96) -> Pixels:
    """A picture with something to see everywhere, unlike that of any other seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3)).astype(np.uint8)
    return resized(coarse, height, width, "bicubic")


def plain(tone: int) -> Pixels:
    return np.full((96, 96, 3), tone, np.uint8)


def pasted(on: Pixels, picture: Pixels, top: int, left: int) -> Pixels:
    made = on.copy()
    height, width = picture.shape[:2]
    made[top : top + height, left : left + width] = picture
    return made


def inside(region: Region, top: float, left: float, bottom: float, right: float) -> np.ndarray:
    """The cells within these shares of the picture."""
    height, width = region.cells_hw.shape
    return region.cells_hw[round(top * height) : round(bottom * height), round(left * width) : round(right * width)]


def test_a_copy_of_the_whole_is_the_whole() -> None:
    found = locate(textured(1), textured(1))
    assert found.agreement == found.share(SAME) == 1
    assert found.alignment == pytest.approx((False, 1, 0, 0), abs=1e-9)
    assert found.cells_hw.shape == (SIDES[1] // CELL, SIDES[1] // CELL)


def test_of_other_pictures_hardly_anything_agrees() -> None:
    """The null: forty pairs, all mirrorings, scales and shifts tried for each."""
    assert max(locate(textured(seed), textured(100 + seed)).agreement for seed in range(40)) < 0.1


@pytest.mark.parametrize(
    ("scale", "top", "left"), [(1.0, 0.0, 0.2), (1.0, -0.15, 0.1), (1.3, -0.1, -0.2), (0.8, 0.1, 0)]
)
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_picture_is_found_as_it_lies(scale: float, top: float, left: float, mirrored: bool) -> None:
    training = textured(2)
    shown = training[:, ::-1] if mirrored else training
    side = round(96 * scale)
    canvas = textured(3, 288, 288)
    canvas = pasted(
        canvas,
        resized(np.ascontiguousarray(shown), side, side, "bicubic"),
        round(96 * (1 + top)),
        round(96 * (1 + left)),
    )
    found = locate(np.ascontiguousarray(canvas[96:192, 96:192]), training)
    assert found.alignment is not None
    assert found.alignment.mirrored == mirrored
    assert found.alignment.scale == pytest.approx(scale, rel=0.06)
    assert found.alignment.top == pytest.approx(top, abs=0.04)
    assert found.alignment.left == pytest.approx(left, abs=0.04)
    within = [max(0.0, top), max(0.0, left), min(1.0, top + scale), min(1.0, left + scale)]
    area = (within[2] - within[0]) * (within[3] - within[1])
    assert 0.6 * area < found.share(SAME) <= area + 0.02


def test_a_pasted_part_is_marked_and_nothing_else() -> None:
    training = textured(4)
    found = locate(pasted(textured(5), training[24:72, 48:96], 24, 48), training)
    assert (inside(found, 0.35, 0.6, 0.65, 1) == SAME).all()
    assert (inside(found, 0, 0, 1, 0.45) == DIFFERS).all()
    assert (inside(found, 0, 0, 0.2, 1) == DIFFERS).all()
    assert 0.12 < found.share(SAME) < 0.25


def test_a_region_that_varies_is_left_out_of_a_template() -> None:
    training = textured(6)
    found = locate(pasted(training, textured(7, 32, 32), 48, 16), training)
    assert (inside(found, 0.6, 0.27, 0.75, 0.4) == DIFFERS).all()
    assert (inside(found, 0, 0, 0.4, 1) == SAME).all()
    assert 0.65 < found.agreement < 0.9


@pytest.mark.parametrize("change", [lambda p: p // 2 + 40, lambda p: 255 - (255 - p) // 2, lambda p: p])
def test_light_and_contrast_hide_no_copy(change: object) -> None:
    assert locate(change(textured(8)), textured(8)).agreement > 0.95  # type: ignore[operator]


def test_plain_ground_agrees_and_proves_nothing() -> None:
    training = pasted(plain(240), textured(9, 48, 48), 24, 24)
    found = locate(training, training)
    assert (inside(found, 0.4, 0.4, 0.6, 0.6) == SAME).all()
    assert (inside(found, 0, 0, 0.15, 1) == PLAIN).all()
    assert found.agreement > 0.9
    nothing = locate(plain(200), plain(200))
    assert (nothing.agreement, nothing.alignment) == (0, None)


@pytest.mark.parametrize("side", [32, 48, 64])
@pytest.mark.parametrize("round_", [False, True])
def test_an_outline_is_no_copy(side: int, round_: bool) -> None:
    """Objects of one shape before one ground, of which nothing else is alike; of small ones less can be told."""
    found = [locate(shaped(2 * seed, side, round_), shaped(2 * seed + 1, side, round_)) for seed in range(12)]
    assert np.median([one.agreement for one in found]) < 0.2
    assert max(one.agreement for one in found) < (0.55 if side == 32 else 0.35)
    assert locate(shaped(3, side, round_), shaped(3, side, round_)).agreement > 0.9


def shaped(seed: int, side: int, round_: bool) -> Pixels:
    picture = pasted(plain(240), textured(200 + seed, side, side), 48 - side // 2, 48 - side // 2)
    if round_:
        rows, columns = np.ogrid[:96, :96]
        picture[(rows - 47.5) ** 2 + (columns - 47.5) ** 2 > (side / 2) ** 2] = 240
    return picture


def test_grounds_of_other_tones_differ() -> None:
    training = pasted(plain(240), textured(9, 48, 48), 24, 24)
    found = locate(pasted(plain(120), textured(9, 48, 48), 24, 24), training)
    assert (inside(found, 0, 0, 0.15, 1) == DIFFERS).all()
    assert (inside(found, 0.45, 0.45, 0.55, 0.55) == SAME).all()


def test_a_wide_training_picture_is_found_in_its_middle_and_a_very_long_one_is_cut() -> None:
    wide = textured(11, 96, 192)
    found = locate(np.ascontiguousarray(wide[:, 48:144]), wide)
    assert found.alignment is not None
    assert found.alignment.left == pytest.approx(-0.5, abs=0.02)
    assert found.share(SAME) == 1
    assert locate(textured(12), np.tile(textured(13), (1, 40, 1))).agreement < 0.1


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (8, 8), (300, 20), (20, 300)])
def test_pictures_of_any_size_are_compared(size: tuple[int, int]) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    found = locate(picture, picture)
    # Of a very long one only the middle is looked for, and of a speck there is nothing to see.
    assert found.agreement == 1 or (0 <= found.agreement < 0.2 and size != (8, 8))
    assert 0 <= locate(textured(14), picture).agreement < 0.2
