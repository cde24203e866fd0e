"""Bands and match: what samples come near to, and how near is a copy."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipelines.stages.bands import BandsWorker
from pipelines.stages.match import MatchWorker
from pipelines.stages.search import Neighbour, SampleSearch
from sharpaudit.embedders.base import open_embedder
from sharpaudit.errors import Status, UserError
from sharpaudit.images import Pixels, encode_png
from sharpaudit.matches.approximation import add_structure, open_structure
from sharpaudit.matches.build import build_index
from sharpaudit.matches.decide import Bands
from sharpaudit.matches.index import ReferenceIndex, open_index
from sharpaudit.matches.search import structures
from sharpaudit.matches.sources.base import ReferencePicture
from sharpaudit.plugs import EMBEDDERS
from sharpaudit.tables.image_store import ImageStore, is_whole
from tests.support.stage_tables import config, index, pixels
from tests.support.toys import EMBEDDER

SHOWN: dict[str, Pixels | None] = {
    "a copy": pixels(2),
    "nearly": np.clip(pixels(3).astype(int) + np.random.default_rng(9).integers(-90, 90, (24, 24, 3)), 0, 255).astype(
        np.uint8
    ),
    "another": pixels(77),
    "grey": np.full((24, 24, 3), 128, np.uint8),
    "unreadable": None,
}
BANDS = Bands(copy_above=0.95, near_above=0.5, n_samples=20, n_prompts=10, n_exceptions=0)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> ReferenceIndex:
    return index(tmp_path_factory.mktemp("index"), 6)


def load(paths: list[str]) -> list[Pixels | None]:
    return [SHOWN[path] for path in paths]


def samples(**statuses: Status) -> pa.Table:
    rows = [
        {"sample_id": name, "prompt_id": f"p {name}", "image_path": name, "status": statuses.get(name, Status.OK)}
        for name in [*SHOWN, *statuses]
    ]
    return pa.Table.from_pylist(rows)


def matched(known: ReferenceIndex, table: pa.Table, *overrides: str) -> dict[str, list[dict[str, object]]]:
    found: dict[str, list[dict[str, object]]] = {}
    with TemporaryDirectory() as run:
        storing = partial(ImageStore, Path(run))
        worker = MatchWorker(SampleSearch(known, 2), load, storing, BANDS, config(*overrides).matches)
        for row in worker.process(table).to_pylist():
            found.setdefault(row["sample_id"], []).append(row)
            assert row["thumbnail_path"] is None or is_whole(Path(run) / row["thumbnail_path"])
    return found


def test_each_sample_has_its_neighbours_or_the_reason_why_not(known: ReferenceIndex) -> None:
    found = matched(known, samples(lost=Status.NON_FINITE))
    assert [row["rank"] for row in found["a copy"]] == [1, 2, 3]
    assert (found["a copy"][0]["reference_id"], found["a copy"][0]["band"]) == ("r2", "copy")
    assert found["a copy"][0]["similarity"] == pytest.approx(1)
    assert (found["nearly"][0]["reference_id"], found["nearly"][0]["band"]) == ("r3", "near")
    assert found["another"][0]["band"] == "none"
    reasons = {name: [(row["rank"], row["status"]) for row in found[name]] for name in ("grey", "unreadable", "lost")}
    assert reasons == {
        "grey": [(1, Status.NO_DESCRIPTOR)],
        "unreadable": [(1, Status.UNREADABLE_IMAGE)],
        "lost": [(1, Status.NON_FINITE)],
    }
    assert all(
        row["index_digest"] == known.digest and row["profile"] == "pixels-16" for rows in found.values() for row in rows
    )
    shown = {str(row["thumbnail_path"]) for rows in found.values() for row in rows if row["status"] == Status.OK}
    references = {str(row["reference_id"]) for rows in found.values() for row in rows if row["status"] == Status.OK}
    assert len(shown) == len(references)


def test_a_sample_is_matched_alike_whatever_stands_beside_it(known: ReferenceIndex) -> None:
    every, one = matched(known, samples()), matched(known, samples().slice(1, 1))
    assert one["nearly"] == every["nearly"]


def test_as_many_neighbours_as_asked_for(known: ReferenceIndex) -> None:
    assert [len(rows) for rows in matched(known, samples().slice(0, 2), "matches.neighbours=5").values()] == [5, 5]


def test_an_index_that_is_replaced_meanwhile_is_refused(tmp_path: Path) -> None:
    old = index(tmp_path, 3)
    worker = MatchWorker(SampleSearch(old, 2), load, partial(ImageStore, tmp_path), BANDS, config().matches)
    vectors = tmp_path / "index/vectors/pixels-16/00000.npy"
    vectors.write_bytes(vectors.read_bytes())
    with pytest.raises(UserError, match="changed while it was in use"):
        worker.process(samples().slice(0, 1))
    assert not list((tmp_path / "images").rglob("*.png"))


def test_the_line_of_a_copy_is_the_nearest_of_the_harmless_but_the_exceptions(known: ReferenceIndex) -> None:
    shown = {f"{i}": pixels(100 + i) for i in range(100)} | {"one": pixels(4)}
    rows = pa.table({"prompt_id": [f"p{name}" for name in shown], "image_path": list(shown)})

    def line(*overrides: str) -> dict[str, float]:
        worker = BandsWorker(
            SampleSearch(known, 8), lambda paths: [shown[path] for path in paths], config(*overrides).matches
        )
        (row,) = worker.process(rows).to_pylist()
        assert (row["n_prompts"], row["n_samples"], row["index_digest"]) == (101, 101, known.digest)
        return row

    assert line("matches.band_exceptions=0")["copy_above"] == pytest.approx(1)
    assert line()["n_exceptions"] == 1
    assert line()["near_above"] < line()["copy_above"] < 0.6


def test_an_approximate_search_is_held_against_an_exact_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the pictures that set the line; one of them is made to be missed."""
    monkeypatch.setattr(structures, "LEAST_ROWS", 2)
    small = index(tmp_path, 6)
    add_structure(small.path, "sq8", tell=lambda _: None)
    whole = open_structure(small, "sq8")
    rows = pa.table({"prompt_id": [f"p{i}" for i in range(5)], "image_path": [f"{i}" for i in range(5)]})

    def missing(queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        similarities, found = whole.search(queries, k + 1)
        similarities[:4], found[:4] = similarities[:4, ::-1], found[:4, ::-1]
        return similarities[:, :k], found[:, :k]

    for structure, recall in (
        (whole, 5),
        (SimpleNamespace(search=missing, described="it misses", require_unchanged=lambda: None), 1),
    ):
        worker = BandsWorker(
            SampleSearch(small, 8, structure=structure),
            lambda paths: [pixels(int(path)) for path in paths],
            config("matches.search=sq8").matches,
        )
        (row,) = worker.process(rows).to_pylist()
        assert (row["search"], row["recall_found"], row["recall_n"]) == ("sq8", recall, 5)


def test_exact_search_has_no_recall_to_tell(known: ReferenceIndex) -> None:
    rows = pa.table({"prompt_id": ["p"], "image_path": ["a copy"]})
    (row,) = BandsWorker(SampleSearch(known, 8), load, config().matches).process(rows).to_pylist()
    assert (row["search"], row["recall_found"], row["recall_n"]) == ("exact", None, None)


def test_bands_of_nothing_are_refused(known: ReferenceIndex) -> None:
    rows = pa.table({"prompt_id": ["p"], "image_path": ["grey"]})
    with pytest.raises(UserError, match="no band sample could be matched"):
        BandsWorker(SampleSearch(known, 8), load, config().matches).process(rows)


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> tuple[ReferenceIndex, ReferenceIndex]:
    """The same pictures by pixels and by their mean colour."""
    EMBEDDERS.add(EMBEDDER)
    try:
        folder = tmp_path_factory.mktemp("twice") / "index"
        pictures = [ReferencePicture(f"r{i}", "a set", "", f"{i}.png", encode_png(pixels(i))) for i in range(6)]
        build_index(folder, ["pixels-16", "mean-colour"], pictures)
        return open_index(folder, "pixels-16"), open_index(folder, "mean-colour")
    finally:
        EMBEDDERS.remove(EMBEDDER.name)


TWO = 'matches.profiles=["pixels-16", "sscd-disc-mixup-320"]'
"""What the configuration names is no matter of a worker."""


def judged(search: SampleSearch, bands: Bands, run: Path) -> list[dict[str, Any]]:
    """What becomes of one sample."""
    worker = MatchWorker(search, load, partial(ImageStore, run), bands, config(TWO).matches)
    return worker.process(samples().slice(0, 1)).to_pylist()


def test_a_second_instrument_verifies_the_pairs_of_the_first(
    twice: tuple[ReferenceIndex, ReferenceIndex], tmp_path: Path
) -> None:
    index, second = twice
    bands = Bands(0.95, 0.5, n_samples=20, n_prompts=10, n_exceptions=0, verified_above=0.999)
    search = SampleSearch(index, 2, second=second)
    rows = judged(search, bands, tmp_path)
    assert [(row["rank"], row["band"]) for row in rows] == [(1, "copy"), (2, "none"), (3, "none")]
    assert {row["verified_by"] for row in rows} == {"sscd-disc-mixup-320"}
    query = open_embedder(second.embedder).describe([pixels(2)])[0]
    ids = list(second.reference_ids())
    for row in rows:
        other = second.vectors.rows([ids.index(row["reference_id"])])[0]
        assert row["verified_similarity"] == pytest.approx(float(query @ other), abs=1e-6)


def test_what_the_second_cannot_describe_or_sees_otherwise_is_no_copy(
    twice: tuple[ReferenceIndex, ReferenceIndex], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, second = twice
    search = SampleSearch(index, 2, second=second)
    blind = np.full((1, 4), np.nan, np.float32)
    for seen, above, verified in ((blind, 0.0, None), (-second.vectors.rows([2]), 0.5, pytest.approx(-1, abs=1e-6))):
        bands = Bands(0.95, 0.5, n_samples=20, n_prompts=10, n_exceptions=0, verified_above=above)
        monkeypatch.setattr(search, "_verifier", SimpleNamespace(describe=lambda _, seen=seen: seen))
        rows = judged(search, bands, tmp_path)
        assert (rows[0]["band"], rows[0]["verified_similarity"]) == ("near", verified)


def test_the_lines_of_two_instruments_are_learned_from_all_neighbours(
    twice: tuple[ReferenceIndex, ReferenceIndex],
) -> None:
    rows = pa.table({"prompt_id": [f"p{i}" for i in range(8)], "image_path": [f"{i}" for i in range(100, 108)]})
    search = SampleSearch(twice[0], 8, second=twice[1])
    worker = BandsWorker(search, lambda paths: [pixels(int(path)) for path in paths], config(TWO).matches)
    (row,) = worker.process(rows).to_pylist()
    found = search.nearest([pixels(seed) for seed in range(100, 108)], 3)
    pairs = [(n.similarity, n.verified) for near in found if isinstance(near, list) for n in near]
    assert row["verified_by"] == "sscd-disc-mixup-320"
    assert not any(first > row["copy_above"] and also > row["verified_above"] for first, also in pairs)
    assert row["copy_above"] in [first for first, _ in pairs]
    assert row["verified_above"] in [also for _, also in pairs]


def test_a_second_instrument_that_sees_nothing_is_refused(
    twice: tuple[ReferenceIndex, ReferenceIndex], monkeypatch: pytest.MonkeyPatch
) -> None:
    search = SampleSearch(twice[0], 8, second=twice[1])
    blind = SimpleNamespace(describe=lambda images: np.full((len(images), 4), np.nan, np.float32))
    monkeypatch.setattr(search, "_verifier", blind)
    rows = pa.table({"prompt_id": ["p"], "image_path": ["a copy"]})
    with pytest.raises(UserError, match="can describe no band sample"):
        BandsWorker(search, load, config(TWO).matches).process(rows)


@pytest.mark.parametrize(("overrides", "k"), [((), 1), ((TWO,), 3), ((TWO, "matches.neighbours=5"), 5)])
def test_the_line_is_set_by_as_many_neighbours_as_are_judged(overrides: tuple[str, ...], k: int) -> None:
    """With one instrument the nearest decides, with two any neighbour may."""
    asked: list[int] = []

    def measured(pictures: list[Pixels], k: int) -> tuple[list[list[Neighbour]], None]:
        asked.append(k)
        return [[Neighbour("r", 0.5, 0, 0.5)] * k for _ in pictures], None

    search = SimpleNamespace(measured=measured, index=SimpleNamespace(digest="d"))
    rows = pa.table({"prompt_id": ["p", "q"], "image_path": ["a copy", "another"]})
    BandsWorker(search, load, config(*overrides).matches).process(rows)
    assert asked == [k]
