"""What two instruments count: written and read again, agreement, and the bound on prompts that were never generated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.research.lab.agreement import (
    Agreement,
    Counted,
    Kept,
    agreement,
    count,
    never_generated_copy,
    read_generations,
    write_generations,
)
from pipelines.research.lab.drawing import compose
from pipelines.research.lab.labels import Plants
from pipelines.research.lab.trainingset import MINIATURE, picture, plan
from sharpaudit.seeds import generator
from sharpaudit.statistics.intervals import upper_bound

RECIPE = replace(MINIATURE, unique=120, exact=((40, 3),), templates=1, template_copies=5, harmless=40)
ROW = Counted("a big drawing of an owl", "drawn", "seen", 5.0, 8, 0, 0, 0, 0, 0)


@pytest.fixture(scope="module")
def plants() -> Plants:
    drawn = plan(RECIPE)
    return Plants(drawn, np.stack([picture(RECIPE.seed, row) for row in drawn.rows]))


def test_both_instruments_are_counted_beside_each_other(plants: Plants, tmp_path: Path) -> None:
    mine, other = plants.prompts[:2]
    fresh = [compose(mine.family, generator("fresh", i)) for i in range(8)]
    shown = [*plants.pictures_PHWC[[0, 0, 0, 1]], *fresh[4:]]
    rows = count(plants, [mine, other], {mine.caption: "planted", other.caption: "planted"}, 5.0, np.stack([shown] * 2))
    counts = [(r.pixels_own, r.pixels_other, r.regions_own, r.regions_other, r.disputed) for r in rows]
    assert counts == [(3, 1, 3, 1, 0), (1, 3, 1, 3, 0)]
    assert [row.label("pixels") for row in rows] == ["partly", "partly"]
    write_generations(tmp_path, rows)
    assert read_generations(tmp_path) == rows


def test_counts_are_kept_as_they_come_and_a_line_that_was_cut_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "counted.csv"
    first = Kept(path)
    assert first.rows == []
    rows = [replace(ROW, prompt=f'an owl, "{i}"', guidance=g) for i, g in enumerate((5.0, 1.0, 7.5))]
    first.add(rows[:2])
    first.add(rows[2:])
    assert Kept(path).rows == first.rows == rows
    whole = path.read_text()
    path.write_text(whole[:-4])
    again = Kept(path)
    assert again.rows == rows[:2]
    again.add(rows[2:])
    assert path.read_text() == whole


def test_a_picture_of_the_same_ground_alone_is_where_they_part(plants: Plants) -> None:
    """A picture whose shading is the plant's and whose object is gone: the whole is near, no region is like."""
    template = plants.prompts[0]
    plant = plants.pictures_PHWC[0].astype(float)
    shade = np.indices((64, 64)).sum(0)[..., None] / 126 * 90
    plants_flat = replace_plant(plants, (plant * 0.25 + shade).round().astype(np.uint8))
    ground = np.broadcast_to(shade + plant.mean((0, 1)) * 0.25, (64, 64, 3)).round().astype(np.uint8)
    (row,) = count(plants_flat, [template], {template.caption: "planted"}, 5.0, np.stack([[ground] * 8]))
    assert (row.pixels_own, row.regions_own, row.disputed) == (8, 0, 8)
    assert row.disputed_label


def replace_plant(plants: Plants, picture_HWC: np.ndarray) -> Plants:
    other = Plants(plan(RECIPE), plants.training_NHWC)
    other.pictures_PHWC = other.pictures_PHWC.copy()
    other.pictures_PHWC[0] = picture_HWC
    return other


def test_agreement_counts_prompts_and_generations_of_each_guidance() -> None:
    rows = [
        replace(ROW, pixels_own=4, regions_own=5, disputed=1),
        replace(ROW, pixels_own=4, regions_own=3, disputed=1),
        ROW,
        replace(ROW, guidance=1.0, pixels_other=1, disputed=1),
    ]
    assert agreement(rows) == [Agreement(5.0, 3, 2, 24, 22), Agreement(1.0, 1, 0, 8, 7)]


def test_the_bound_counts_what_was_drawn_at_the_first_guidance() -> None:
    rows = [ROW] * 30 + [replace(ROW, pixels_other=1), replace(ROW, chosen="ranked", pixels_other=8)]
    rows += [replace(ROW, guidance=1.0, pixels_other=8)] * 5
    assert never_generated_copy(rows) == (1, 31, upper_bound(1, 31, 0.95))
