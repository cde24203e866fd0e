"""How like pictures are to each other, and to those of other prompts."""

from __future__ import annotations

import numpy as np
import pytest

from sharpaudit.matches.alike import NEAREST, Background, alike


def unit(*rows: tuple[float, ...]) -> np.ndarray:
    made = np.array(rows, np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def test_alike_is_the_median_of_medians_in_any_order() -> None:
    rows = unit((1, 0), (1, 1), (0, 1), (-1, 0), (2, 1))
    medians = [np.median([float(a @ b) for j, b in enumerate(rows) if j != i]) for i, a in enumerate(rows)]
    assert alike(rows) == pytest.approx(float(np.median(medians)), abs=1e-6)
    assert alike(rows[[2, 0, 4, 3, 1]]) == alike(rows)
    assert alike(np.repeat(rows[:1], 5, axis=0)) == pytest.approx(1)


def test_one_picture_is_alike_to_nothing() -> None:
    assert alike(unit((1, 0))) is None
    assert alike(np.empty((0, 2), np.float32)) is None


def test_of_four_neither_one_pair_nor_one_picture_tells_of_all() -> None:
    apart = np.eye(4, dtype=np.float32)
    assert alike(np.concatenate([apart[:3], apart[:1]])) == 0
    assert alike(np.concatenate([np.repeat(apart[:1], 3, axis=0), apart[1:2]])) == 1


def test_background_is_the_mean_of_the_nearest_of_other_prompts() -> None:
    rows = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    names = [f"p{i % 10}" for i in range(20)]
    other = [float(rows[3] @ rows[i]) for i in range(20) if names[i] != "p3"]
    assert Background(names, rows).like(rows[3], "p3") == pytest.approx(np.mean(sorted(other)[-NEAREST:]), abs=1e-6)
    assert Background(names, rows).like(rows[3], "of none") > Background(names, rows).like(rows[3], "p3")  # type: ignore[operator]


def test_pictures_without_a_descriptor_are_no_background_and_too_few_are_none() -> None:
    rows = unit((1, 0), (1, 0), (1, 0), (0, 1))
    rows[0] = np.nan
    assert Background(["a", "b", "c", "d"], rows).like(rows[1], "x") == pytest.approx(2 / 3, abs=1e-6)
    assert Background(["a", "b", "c", "d"], rows).like(rows[1], "b") is None
