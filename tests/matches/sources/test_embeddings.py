"""Vectors that somebody else made become the index that the pictures themselves would have become."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from pipelines.cli import cli
from sharpaudit.errors import UserError
from sharpaudit.matches.build import build_index
from sharpaudit.matches.checking import faults_of
from sharpaudit.matches.index import ReferenceIndex, open_index
from sharpaudit.matches.sources import embeddings
from sharpaudit.matches.sources.embeddings import EmbeddingLayout
from tests.support.reference_pictures import picture

N = 12


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> ReferenceIndex:
    folder = tmp_path_factory.mktemp("own") / "index"
    build_index(folder, "pixels-16", [picture(i, caption=f"caption {i}", path=f"{i}.png") for i in range(N)])
    return open_index(folder, "pixels-16")


def captions(index: Path) -> list[str | None]:
    return pq.read_table(index / "references/00000.parquet")["caption"].to_pylist()


def clip_retrieval(folder: Path, vectors: np.ndarray, texts: list[str]) -> None:
    """Two partitions, the second shorter, and the embeddings of texts that clip-retrieval writes beside them."""
    for name in ("img_emb", "text_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    for number, some in enumerate((slice(0, 8), slice(8, N))):
        np.save(folder / f"img_emb/img_emb_{number}.npy", vectors[some])
        np.save(folder / f"text_emb/text_emb_{number}.npy", vectors[some])
        paths = [f"/data/{i}.jpg" for i in range(N)][some]
        rows = pa.table({"image_path": paths, "caption": texts[some]})
        pq.write_table(rows, folder / f"metadata/metadata_{number}.parquet", row_group_size=3)


def as_table(folder: Path, vectors: np.ndarray, texts: list[str]) -> None:
    folder.mkdir()
    kind = pa.list_(pa.float32(), vectors.shape[1])
    held = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), type=kind)
    rows = pa.table({"id": range(N), "embedding": held, "text": texts})
    pq.write_table(rows, folder / "part.parquet", row_group_size=5)


def arrays(folder: Path, vectors: np.ndarray, texts: list[str]) -> None:
    folder.mkdir()
    np.save(folder / "0.npy", vectors[:5])
    np.save(folder / "1.npy", vectors[5:])


def build(place: Path, out: Path, *options: str) -> Result:
    call = ["index", "build", str(place), "--layout", "embeddings", "--out", str(out), *options]
    return CliRunner().invoke(cli, call)


@pytest.mark.parametrize("write", [clip_retrieval, as_table, arrays])
def test_vectors_and_captions_are_those_that_were_written(
    own: ReferenceIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[..., None]
) -> None:
    monkeypatch.setattr(embeddings, "ROWS_AT_ONCE", 3)
    texts = [str(caption) for caption in captions(own.path)]
    write(tmp_path / "set", own.vectors.whole(), texts)
    made = build(tmp_path / "set", tmp_path / "index")
    assert made.exit_code == 0, made.output
    index = open_index(tmp_path / "index", "pixels-16")
    assert np.array_equal(index.vectors.whole(), own.vectors.whole())
    assert captions(tmp_path / "index") == (texts if write is not arrays else [None] * N)
    assert list(faults_of(tmp_path / "index")) == []
    assert (index.thumbnail(0), index.manifest.profiles["pixels-16"].given) == (None, True)
    told = CliRunner().invoke(cli, ["index", "info", str(tmp_path / "index")]).output
    assert "made by somebody else and taken as they were given" in told
    assert "pictures: none" in told
    assert "scaled" not in made.output
    assert (".npy" in index.manifest.not_looked_at) == (write is clip_retrieval)


def test_vectors_are_scaled_and_no_direction_is_a_rejected_row(own: ReferenceIndex, tmp_path: Path) -> None:
    vectors = own.vectors.whole() * np.linspace(0.5, 20, N, dtype=np.float32)[:, None]
    vectors[3], vectors[5, 7] = 0, np.nan
    (tmp_path / "set").mkdir()
    np.save(tmp_path / "set/0.npy", vectors.astype(np.float64))
    made = build(tmp_path / "set", tmp_path / "index", "--max-rejected", "0.5")
    assert "10 vectors were not of length 1 and were scaled to it" in made.output
    assert "2 for its vector is no direction (such as 0.npy#3)" in made.output
    index = open_index(tmp_path / "index", "pixels-16")
    kept = np.delete(own.vectors.whole(), [3, 5], axis=0)
    assert np.abs(index.vectors.whole() - kept).max() < 1e-6
    assert list(index.reference_ids()) == [f"0.npy#{i}" for i in range(N) if i not in (3, 5)]


def test_float16_is_taken_as_it_is(own: ReferenceIndex, tmp_path: Path) -> None:
    arrays(tmp_path / "set", own.vectors.whole().astype(np.float16), [])
    assert build(tmp_path / "set", tmp_path / "index").exit_code == 0
    found = open_index(tmp_path / "index", "pixels-16").vectors.whole()
    assert np.array_equal(found, own.vectors.whole().astype(np.float16).astype(np.float32))


@pytest.mark.parametrize("write", [clip_retrieval, as_table])
def test_captions_whose_bytes_are_no_unicode_are_kept_as_far_as_they_are(
    own: ReferenceIndex, tmp_path: Path, write: Callable[..., None]
) -> None:
    write(tmp_path / "set", own.vectors.whole(), ["plain"] * N)
    for path in (tmp_path / "set").rglob("*.parquet"):
        rows = pq.read_table(path)
        name = "caption" if "caption" in rows.column_names else "text"
        odd = pa.array([b"an \xff odd one"] * len(rows), pa.binary()).view(pa.string())
        pq.write_table(rows.set_column(rows.column_names.index(name), name, odd), path)
    made = build(tmp_path / "set", tmp_path / "index")
    assert made.exit_code == 0, made.output
    assert set(captions(tmp_path / "index")) == {"an \ufffd odd one"}


def refused(place: Path, says: str, **options: str) -> None:
    with pytest.raises(UserError, match=says):
        list(EmbeddingLayout(place, **options).everything())


def test_what_cannot_be_told_is_refused_by_name(own: ReferenceIndex, tmp_path: Path) -> None:
    vectors = own.vectors.whole()
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no vectors: neither img_emb")
    clip_retrieval(tmp_path / "clip", vectors, ["x"] * N)
    pq.write_table(pa.table({"caption": ["x"]}), tmp_path / "clip/metadata/metadata_1.parquet")
    refused(tmp_path / "clip", r"img_emb_1\.npy: 4 vectors, but 1 rows in metadata/metadata_1\.parquet")
    as_table(tmp_path / "table", vectors, ["x"] * N)
    refused(tmp_path / "table", "--vector-column other: .* has no such; it has embedding", vector_column="other")
    refused(tmp_path / "table", "--caption-column other: there is no such column", caption_column="other")
    rows = pq.read_table(tmp_path / "table/part.parquet")
    pq.write_table(rows.append_column("again", rows["embedding"]), tmp_path / "table/part.parquet")
    refused(tmp_path / "table", "columns embedding, again hold vectors; name one with --vector-column")
    for name, odd in (("pickle", np.array([{}], dtype=object)), ("flat", np.ones(3, np.float32))):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "0.npy", odd, allow_pickle=True)
        refused(tmp_path / name, r"0\.npy: ")


def test_vectors_of_another_dimension_end_the_build(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    np.save(tmp_path / "set/0.npy", np.eye(4, dtype=np.float32))
    made = build(tmp_path / "set", tmp_path / "index")
    assert isinstance(made.exception, UserError)
    assert "0.npy#0: its vector has 4 numbers, those of pixels-16 have 768" in str(made.exception)
    assert not (tmp_path / "index").exists()


def test_options_of_other_layouts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for options, says in (
        (["--image-column", "x"], "--image-column: for tables; add --layout parquet"),
        (["--profile", "pixels-16", "--profile", "sscd-disc-mixup-320"], "the vectors are those of one embedder"),
    ):
        assert says in str(build(tmp_path / "set", tmp_path / "index", *options).exception)
    add = ["index", "add", str(tmp_path), str(tmp_path), "--profile", "pixels-16", "--layout", "embeddings"]
    assert "an index knows its references by pictures" in CliRunner().invoke(cli, add).output
