"""The pixel descriptor: its identities, and that a vector depends on its own picture only."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sharpaudit.embedders.base import embedder, open_embedder
from sharpaudit.embedders.pixels import PixelEmbedder, overlap
from sharpaudit.errors import UserError

CARD = embedder("pixels-16")
PIXELS = open_embedder(CARD)


def noise(seed: int, height: int = 40, width: int = 56) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_rows_are_unit_float32_and_centred():
    rows = PIXELS.describe([noise(1), noise(2, 16, 16), noise(3, 7, 300)])
    assert rows.dtype == np.float32
    assert rows.shape == (3, CARD.dimension) == (3, 768)
    assert np.allclose(np.linalg.norm(rows.astype(float), axis=1), 1, atol=1e-6)
    assert np.allclose(rows.reshape(3, 3, 256).sum(axis=2), 0, atol=1e-5)


def test_no_pictures_give_no_rows():
    assert PIXELS.describe([]).shape == (0, CARD.dimension)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=5), st.integers(0, 99))
def test_a_row_does_not_depend_on_its_batch(sizes, seed):
    images = [noise(seed + i, *size) for i, size in enumerate(sizes)]
    together = PIXELS.describe(images)
    alone = np.concatenate([PIXELS.describe([image]) for image in images])
    assert together.tobytes() == alone.tobytes()
    assert PIXELS.describe(images[::-1])[::-1].tobytes() == together.tobytes()


def test_a_row_does_not_depend_on_threads_or_memory_layout():
    image = noise(4, 501, 333)
    expected = PIXELS.describe([image]).tobytes()
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert PIXELS.describe([np.asfortranarray(image)]).tobytes() == expected
    torch.set_num_threads(before)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 999))
def test_the_cells_are_exact_area_means(height, width, seed):
    image = noise(seed, height, width)
    # Repeated 16 times along each axis, every cell is a block of whole pixels.
    fine = image.repeat(16, axis=0).repeat(16, axis=1).astype(np.int64)
    cells = fine.reshape(16, height, 16, width, 3).sum(axis=(1, 3)).transpose(2, 0, 1)
    centred = cells - cells.mean(axis=(1, 2), keepdims=True)
    found = PIXELS.describe([image])[0]
    if np.isfinite(found).all():
        assert np.allclose(found, centred.ravel() / np.linalg.norm(centred), atol=1e-6)


@given(st.integers(1, 5000), st.integers(1, 64))
@settings(max_examples=30, deadline=None)
def test_every_pixel_is_counted_once(n, side):
    shares = overlap(n, side)
    assert (shares.sum(axis=0) == side).all()
    assert (shares.sum(axis=1) == n).all()


@pytest.mark.parametrize("factor", [2, 3])
def test_whole_enlargement_changes_nothing(factor):
    image = noise(5, 48, 32)
    large = image.repeat(factor, axis=0).repeat(factor, axis=1)
    assert PIXELS.describe([image]).tobytes() == PIXELS.describe([large]).tobytes()


def test_brightness_and_contrast_change_nothing():
    image = noise(6) // 3
    brighter = 2 * image + 60
    assert PIXELS.describe([brighter]).tobytes() == PIXELS.describe([image]).tobytes()


def test_the_negative_is_the_opposite():
    rows = PIXELS.describe([noise(7), 255 - noise(7)])
    assert np.array_equal(rows[0], -rows[1])


@pytest.mark.parametrize("level", [0, 1, 77, 255])
def test_a_constant_picture_has_no_descriptor(level):
    flat = np.full((33, 65, 3), level, np.uint8)
    flat[:, :, 1] = 255 - level
    rows = PIXELS.describe([noise(8), flat, noise(9)])
    assert np.isnan(rows[1]).all()
    assert np.isfinite(rows[[0, 2]]).all()


@pytest.mark.parametrize(("step", "usable"), [(1, False), (3, True)])
def test_contrast_below_a_grey_level_is_no_content(step, usable):
    image = np.full((32, 32, 3), 100, np.uint8)
    image[:, 16:] += step  # half of the cells: root mean square step / 2
    assert np.isfinite(PIXELS.describe([image])).all() == usable


def test_only_rgb_bytes_are_described():
    with pytest.raises(ValueError, match="uint8"):
        PIXELS.describe([noise(1).astype(np.float32)])


def test_cards_differ_in_digest_and_unknown_ones_are_refused():
    assert PixelEmbedder(8).digest != PixelEmbedder(16).digest == CARD.digest
    with pytest.raises(UserError, match='did you mean "pixels-16"'):
        embedder("pixel-16")
