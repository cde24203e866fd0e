"""Sample: a row a picture, the picture under its digest, and a status where there is none."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

import pyarrow as pa

from pipelines.stages.sample import SampleWorker, sample_id
from sharpaudit.errors import Status
from sharpaudit.images import decode
from sharpaudit.samples.generate import Generator
from sharpaudit.tables.image_store import ImageStore, read_image
from tests.support.stage_tables import config, prompts
from tests.support.wrapped import Wrapped, analytic


def rows(n: int) -> pa.Table:
    table = prompts(n, "planted")
    ids = [sample_id(prompt_id, 0, "f" * 64) for prompt_id in table["prompt_id"].to_pylist()]
    return table.append_column("seed_index", pa.array([0] * n, pa.int32())).add_column(0, "sample_id", pa.array(ids))


def test_every_sample_has_a_row_and_every_picture_lies_under_its_digest(tmp_path: Path) -> None:
    denoiser = Wrapped(analytic((0.9, 0.9)), poisoned={"planted 1"})
    generator = Generator.of(config(), denoiser)  # type: ignore[arg-type]
    made = SampleWorker(generator, partial(ImageStore, tmp_path)).process(rows(3)).to_pylist()
    assert [row["sample_id"] for row in made] == rows(3)["sample_id"].to_pylist()
    assert [row["status"] for row in made] == [Status.OK, Status.NON_FINITE, Status.OK]
    assert {row["evaluations"] for row in made} == {8}
    for row in (made[0], made[2]):
        data = read_image(tmp_path, row["image_path"])
        assert row["image_sha256"] == hashlib.sha256(data).hexdigest()
        assert decode(data).shape == (row["height_px"], row["width_px"], 3)
        assert row["image_bytes"] == len(data)
        assert row["reason"] is None
    assert made[1]["image_path"] is made[1]["image_sha256"] is None
    assert made[1]["reason"] == Status.NON_FINITE.describe()
    assert len(list((tmp_path / "images").glob("*/*"))) == 2


def test_a_sample_is_the_same_whatever_is_made_beside_it(tmp_path: Path) -> None:
    def digests(table: pa.Table) -> list[str]:
        worker = SampleWorker(Generator.of(config(), analytic((0.9,))), partial(ImageStore, tmp_path))
        return worker.process(table)["image_sha256"].to_pylist()

    assert digests(rows(5))[3:4] == digests(rows(5).slice(3, 1))


def test_the_name_of_a_sample_is_that_of_its_prompt_seed_and_settings() -> None:
    names = {sample_id(*parts) for parts in (("a", 0, "x"), ("a", 1, "x"), ("b", 0, "x"), ("a", 0, "y"))}
    assert len(names) == 4
    assert all(len(name) == 32 for name in names)
