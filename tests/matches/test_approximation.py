"""Approximate structures: what they find is exact, what they miss is measured, and they belong to their vectors."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from pipelines.cli import cli
from sharpaudit.config.matches import MatchesConfig
from sharpaudit.embedders.base import embedder
from sharpaudit.errors import UserError
from sharpaudit.matches import approximation
from sharpaudit.matches.approximation import add_structure, open_structure
from sharpaudit.matches.build import write_index
from sharpaudit.matches.checking import faults_of
from sharpaudit.matches.exact import nearest
from sharpaudit.matches.index import Hashed, open_index
from sharpaudit.matches.search import approximate, structures
from sharpaudit.matches.search.approximate import KINDS, RECORD
from sharpaudit.matches.search.structures import disturbed
from sharpaudit.matches.search.vectors import Vectors
from sharpaudit.matches.writing import IndexWriter, Kept, Row
from sharpaudit.tables.records import checksummed
from tests.support.shown import verbs

N, D = 1500, 768
PLACE = "approximate/pixels-16"


def members(seed: int = 0, n: int = N) -> np.ndarray:
    """Unit rows in loose clusters of ten, so that neighbours fall into other lists."""
    draws = np.random.default_rng(seed)
    centres = draws.standard_normal((n // 10, D)).repeat(10, axis=0)
    rows = 0.3 * centres + draws.standard_normal((n, D))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def written(path: Path, rows_ND: np.ndarray) -> Path:
    def write(writer: IndexWriter) -> None:
        rows: list[Row] = [
            {
                "reference_id": f"{i:05d}",
                "source": "drawn",
                "path": str(i),
                "status": "ok",
                "reason": None,
                "image_sha256": None,
            }
            for i in range(len(rows_ND))
        ]
        writer.add(rows, [rows_ND])

    write_index(path, [embedder("pixels-16")], Kept(thumbnails=False), write)
    return path


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structures, "LEAST_ROWS", 100)
    monkeypatch.setattr(structures, "QUERIES", 200)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("approximate") / "index", members())


@pytest.fixture
def place(bare: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bare, tmp_path / "index"))


def silent(_: str) -> None:
    pass


def test_the_configuration_and_the_command_know_these_kinds() -> None:
    assert MatchesConfig.model_json_schema()["properties"]["search"]["enum"] == ["exact", *KINDS]
    (kind,) = [option for option in verbs()["sharpaudit index approximate"].params if option.name == "kind"]
    assert isinstance(kind.type, click.Choice)
    assert list(kind.type.choices) == list(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_found_is_exact_and_in_order_also_in_pieces(
    place: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(structures, "CHUNK_ROWS", 700)
    made = add_structure(place, kind, tell=silent)
    assert [chunk.rows for chunk in made.chunks] == [500, 500, 500]
    index = open_index(place, "pixels-16")
    assert index.digest == open_index(place, "pixels-16").digest
    found = open_structure(index, kind).search
    rows_ND = members()
    queries_MD = disturbed(Vectors([rows_ND], D), 90)
    similarities, rows = found(queries_MD, 3)
    exact = np.einsum("md,mkd->mk", queries_MD.astype(np.float64), rows_ND.astype(np.float64)[rows])
    assert np.abs(similarities - exact).max() < 1e-12
    assert (np.diff(similarities, axis=1) <= 0).all()
    assert all(len(set(of_query)) == 3 for of_query in rows.tolist())
    best, _ = nearest(rows_ND, queries_MD, 1)
    assert (similarities[:, 0] >= best[:, 0] - 1e-12).mean() > 0.95
    # Each query alone gets what it gets among others.
    alone = [found(queries_MD[m : m + 1], 3) for m in range(0, 90, 30)]
    assert all(np.array_equal(one[1][0], rows[m]) for one, m in zip(alone, range(0, 90, 30), strict=True))


def test_recall_is_counted_against_exact_search_and_more_lists_are_taken_until_it_is_reached(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    low = add_structure(place, "ivf-sq8", aim=0.01, tell=silent)
    shutil.rmtree(place / PLACE)
    high = add_structure(place, "ivf-sq8", aim=0.999, tell=lines.append)
    assert (low.probes, low.recall.n, high.recall.n) == (1, 200, 200)
    assert low.recall.found < high.recall.found
    assert high.recall.found >= 0.999 * 200
    assert high.probes == 2 ** (len(lines) - 2)
    index = open_index(place, "pixels-16")
    queries_MD = disturbed(index.vectors, 200)
    found, _ = open_structure(index, "ivf-sq8").search(queries_MD, 1)
    best, _ = nearest(members(), queries_MD, 1)
    assert high.recall.found == (np.abs(found - best) < 1e-12).sum()


def test_lists_that_hold_too_few_are_no_reason_to_give_fewer(place: Path) -> None:
    add_structure(place, "ivf-sq8", aim=0.01, tell=silent)
    search = open_structure(open_index(place, "pixels-16"), "ivf-sq8").search
    assert search.structure.probes == 1
    similarities, rows = search(members()[:4], 400)
    assert similarities.shape == (4, 400)
    assert np.array_equal(rows, nearest(members(), members()[:4], 400)[1])


def test_queries_are_disturbed_as_far_as_is_said() -> None:
    rows_ND = members()
    queries_MD = disturbed(Vectors([rows_ND], D), 300)
    cosines = (queries_MD @ rows_ND.T).max(axis=1)
    low, high = structures.DISTURBED
    assert low - 1e-3 < cosines.min() < low + 0.05
    assert high - 0.05 < cosines.max() < high + 1e-3


def test_an_index_without_it_says_how_to_build_one(place: Path) -> None:
    index = open_index(place, "pixels-16")
    with pytest.raises(
        UserError, match=r'matches.search = "sq8": .* no such structure .*there is: none.*index approximate'
    ):
        open_structure(index, "sq8")
    add_structure(place, "fp16", tell=silent)
    with pytest.raises(UserError, match="there is: fp16"):
        open_structure(index, "sq8")
    with pytest.raises(UserError, match="is there already"):
        add_structure(place, "fp16")


def test_a_small_index_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structures, "LEAST_ROWS", N + 1)
    with pytest.raises(UserError, match=r"holds 1,500 vectors: below 1,501 exact search is as quick"):
        add_structure(place, "sq8")
    assert not (place / PLACE / "sq8").exists()
    assert list(faults_of(place)) == []


def test_a_structure_that_was_changed_cut_or_is_of_others_is_refused_and_is_a_fault(
    place: Path, tmp_path: Path
) -> None:
    add_structure(place, "sq8", tell=silent)
    assert list(faults_of(place)) == []
    index, file = open_index(place, "pixels-16"), place / PLACE / "sq8/000000000000.faiss"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match="changed or cut"):
        open_structure(index, "sq8")
    assert [fault for fault in faults_of(place) if "changed or cut" in fault]
    file.write_bytes(whole)
    record = place / PLACE / "sq8" / RECORD
    told = record.read_bytes()
    record.write_bytes(told.replace(b'"probes": 1', b'"probes": 9'))
    with pytest.raises(UserError, match="cannot be read as the record"):
        open_structure(index, "sq8")
    record.write_bytes(told)
    other = open_index(written(tmp_path / "other", members(1)), "pixels-16")
    shutil.copytree(place / "approximate", tmp_path / "other/approximate")
    with pytest.raises(UserError, match="made of other vectors"):
        open_structure(other, "sq8")
    assert any("other vectors" in fault for fault in faults_of(tmp_path / "other"))


def test_a_structure_that_changes_in_use_is_refused(place: Path) -> None:
    add_structure(place, "sq8", tell=silent)
    opened = open_structure(open_index(place, "pixels-16"), "sq8")
    opened.require_unchanged()
    file = place / PLACE / "sq8/000000000000.faiss"
    file.write_bytes(file.read_bytes() + b"more")
    with pytest.raises(UserError, match="approximate structure changed in use"):
        opened.require_unchanged()


def test_a_record_of_other_files_is_refused(place: Path) -> None:
    made = add_structure(place, "sq8", tell=silent)
    record = place / PLACE / "sq8" / RECORD
    tree = json.loads(record.read_bytes())
    del tree["checksum"]
    record.write_bytes(checksummed(tree | {"chunks": [vars(replace(made.chunks[0], rows=9))]}))
    with pytest.raises(UserError, match=r"holds 1500 x 768 vectors"):
        open_structure(open_index(place, "pixels-16"), "sq8")


def test_files_that_are_known_are_not_hashed_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_structure(place, "sq8", tell=silent)
    index = open_index(place, "pixels-16")
    first = open_structure(index, "sq8")
    hashed: list[Path] = []
    monkeypatch.setattr(approximation, "sha256_of", lambda path: hashed.append(path) or "")
    open_structure(index, "sq8", Hashed(index.digest, first.opened))
    assert hashed == []
    with pytest.raises(UserError, match="changed or cut"):
        open_structure(index, "sq8", Hashed("another", first.opened))


def test_the_command_says_what_it_finds_and_info_says_it_again(place: Path) -> None:
    made = CliRunner().invoke(cli, ["index", "approximate", str(place), "--kind", "ivf-pq", "--threads", "1"])
    assert made.exit_code == 0, made.output
    told = CliRunner().invoke(cli, ["index", "info", str(place)]).output
    assert "approximate search by pixels-16: ivf-pq over 1,500 vectors" in told
    assert "of 200 references that were disturbed to a cosine of 0.6 to 0.95" in made.output
    odd = CliRunner().invoke(cli, ["index", "approximate", str(place), "--kind", "sq8", "--profile", "other"])
    assert "holds vectors of pixels-16; name one with --profile" in str(odd.exception)


def test_a_build_that_fails_leaves_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(structures, "recall_of", fail)
    with pytest.raises(OSError, match="No space left"):
        add_structure(place, "sq8", tell=silent)
    assert list((place / PLACE).iterdir()) == []
    assert approximate.CHUNK_ROWS >= 1_000_000
