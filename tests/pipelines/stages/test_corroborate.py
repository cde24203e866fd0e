"""Corroborate: how alike a prompt's pictures are, what they have in common with others, and where a copy is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.stages.corroborate import INPUT, CorroborateWorker
from sharpaudit.embedders.base import open_embedder
from sharpaudit.errors import Status
from sharpaudit.images import Pixels, resized
from sharpaudit.matches.alike import Background, alike
from sharpaudit.matches.region import locate
from sharpaudit.plugs import EMBEDDERS

DESCRIBER = open_embedder(EMBEDDERS["pixels-16"])


def shown(path: str) -> Pixels | None:
    """What lies at a path: a picture of its number, "grey", which has no descriptor, or nothing that can be read."""
    if path == "unreadable":
        return None
    if path == "grey":
        return np.full((24, 24, 3), 128, np.uint8)
    coarse = np.random.default_rng(int(path)).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    return resized(coarse, 48, 48, "bicubic")


def load(paths: Sequence[str]) -> list[Pixels | None]:
    return [shown(path) for path in paths]


def sample(prompt: str, seed: int, path: str, **more: Any) -> dict[str, Any]:
    told = {"sample_id": f"{prompt} {seed}", "prompt_id": prompt, "seed_index": seed, "image_path": path}
    matched = {"reference_id": "r", "similarity": 0.5, "band": "none", "thumbnail_path": "77", "purpose": "flagged"}
    return told | {"status": Status.OK} | matched | more


def process(*samples: dict[str, Any], background: Background | None = None) -> list[dict[str, Any]]:
    held = background or Background([], np.empty((0, 768), np.float32))
    worker = CorroborateWorker(DESCRIBER, load, lambda: held)
    return worker.process(pa.Table.from_pylist(list(samples), INPUT)).to_pylist()


def vectors(*paths: str) -> np.ndarray:
    return DESCRIBER.describe([picture for picture in load(paths) if picture is not None])


def test_pictures_of_a_prompt_are_held_against_each_other_and_against_those_of_others() -> None:
    background = Background(["b0", "b1", "b2", "p"], vectors("20", "21", "22", "1"))
    samples = [sample("p", i, path) for i, path in enumerate(("1", "2", "3"))]
    one, other = process(*samples, sample("q", 0, "4"), background=background)
    assert (one["prompt_id"], one["n_pictures"], one["alike"]) == ("p", 3, alike(vectors("1", "2", "3")))
    assert (other["prompt_id"], other["n_pictures"], other["alike"]) == ("q", 1, None)
    assert one["background"] == background.like(vectors("1")[0], "p")
    assert other["background"] == background.like(vectors("4")[0], "q") != background.like(vectors("4")[0], "p")


def test_a_copy_is_located_in_the_picture_that_decides() -> None:
    """As the views judge: a copy before what is none, then the most similar, then the smallest seed."""
    samples = [
        sample("p", 0, "1", similarity=0.9),
        sample("p", 1, "77", band="copy", similarity=0.8),
        sample("p", 2, "2", band="copy", similarity=0.7),
        sample("p", 3, "3", band="copy", similarity=0.8),
    ]
    (row,) = process(*samples)
    assert (row["sample_id"], row["reference_id"]) == ("p 1", "r")
    assert row["agreement"] == row["same_share"] + row["plain_share"] == 1
    assert (row["mirrored"], row["scale"]) == (False, pytest.approx(1))
    found = locate(*(picture for picture in load(["77", "77"]) if picture is not None))
    assert row["cells"] == found.cells_hw.ravel().tolist()
    assert row["cells_wide"] == found.cells_hw.shape[1]


def test_what_is_no_copy_is_located_only_where_it_sets_the_line() -> None:
    near, band = process(sample("p", 0, "1"), sample("q", 0, "1", purpose="band"))
    assert near["agreement"] is near["cells"] is near["sample_id"] is None
    assert band["agreement"] is not None
    assert band["agreement"] < 0.2
    assert {near["status"], band["status"]} == {Status.OK}


@pytest.mark.parametrize("thumbnail", [None, "unreadable"])
def test_without_the_training_picture_nothing_is_located(thumbnail: str | None) -> None:
    (row,) = process(sample("p", 0, "77", band="copy", thumbnail_path=thumbnail))
    assert (row["agreement"], row["status"]) == (None, Status.OK)


def test_pictures_that_failed_or_show_nothing_are_left_out() -> None:
    lost = {"status": Status.NON_FINITE, "image_path": None, "similarity": None, "band": None}
    rows = process(
        sample("p", 0, "grey", similarity=None),
        sample("p", 1, "1"),
        sample("p", 2, "unreadable"),
        sample("p", 3, "2"),
        sample("q", 0, "x", **lost),
        sample("r", 0, "grey"),
    )
    assert [row["n_pictures"] for row in rows] == [2, 0, 0]
    assert rows[0]["alike"] == alike(vectors("1", "2"))
    assert (rows[1]["status"], rows[1]["reason"]) == (Status.NON_FINITE, Status.NON_FINITE.describe())
    assert (rows[2]["status"], rows[2]["alike"]) == (Status.OK, None)


def test_a_prompt_is_told_alike_whatever_stands_beside_it() -> None:
    samples = [sample(name, seed, f"{8 * i + seed}") for i, name in enumerate("pqr") for seed in range(3)]
    assert process(*samples)[1:2] == process(*samples[3:6])
