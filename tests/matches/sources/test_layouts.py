"""One training set in files, archives and tables is one index; what is missing there is counted or refused."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from pipelines.cli import cli
from sharpaudit.errors import UserError
from sharpaudit.images import encode_png
from sharpaudit.matches.build import build_index
from sharpaudit.matches.index import open_index
from sharpaudit.matches.sources.archives import ArchiveLayout
from sharpaudit.matches.sources.base import NotLookedAt, ReferencePicture, Repeated
from sharpaudit.matches.sources.folder import pictures_in
from sharpaudit.matches.sources.parquet import TableLayout

N = 20
CAPTIONS = {f"{i:05d}": f"picture number {i}, an ébauche" for i in range(N) if i % 3}


def png(seed: int) -> bytes:
    return encode_png(np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8))


def tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    """The same pictures three times: files, two archives, two tables."""
    root = tmp_path_factory.mktemp("kept")
    (root / "files").mkdir()
    lines = []
    for i in range(N):
        (root / f"files/{i:05d}.png").write_bytes(png(i))
        if f"{i:05d}" in CAPTIONS:
            lines.append(json.dumps({"file_name": f"{i:05d}.png", "text": CAPTIONS[f"{i:05d}"]}))
    (root / "captions.jsonl").write_text("\n".join(lines))
    for half in range(2):
        members, rows = {}, []
        for i in range(half * N // 2, (half + 1) * N // 2):
            key = f"{i:05d}"
            members[f"{key}.png"] = png(i)
            text = CAPTIONS.get(key)
            if text is not None:
                members |= (
                    {f"{key}.txt": text.encode()} if i % 2 else {f"{key}.json": json.dumps({"caption": text}).encode()}
                )
            rows.append({"image": {"bytes": png(i), "path": f"{key}.png"}, "text": text})
        tar(root / f"archives/{half:05d}.tar", members)
        (root / "tables").mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), root / f"tables/train-{half}.parquet", row_group_size=7)
    return root


def test_files_archives_and_tables_of_the_same_pictures_are_one_index(kept, tmp_path):
    sets = {
        "files": pictures_in(kept / "files", kept / "captions.jsonl"),
        "archives": ArchiveLayout(kept / "archives").everything(),
        "tables": TableLayout(kept / "tables").everything(),
    }
    found = {}
    for name, items in sets.items():
        summary = build_index(tmp_path / name, "pixels-16", items)
        assert (summary.pictures, summary.statuses, summary.not_looked_at) == (N, {"ok": N}, {})
        index = open_index(tmp_path / name, "pixels-16")
        captions = index.tables[0].read(columns=["caption"]).column(0).to_pylist()
        found[name] = (list(index.reference_ids()), captions, index.vectors.whole().tobytes())
    assert found["files"] == found["archives"] == found["tables"]
    assert found["files"][1] == [CAPTIONS.get(f"{i:05d}") for i in range(N)]


def test_a_picture_is_found_again_by_its_path(kept):
    (archived,) = [p.path for p in ArchiveLayout(kept / "archives").everything() if p.caption == CAPTIONS["00013"]]
    (tabled,) = [p.path for p in TableLayout(kept / "tables").everything() if p.caption == CAPTIONS["00013"]]
    assert (archived, tabled) == ("00001.tar/00013.png", "train-1.parquet#3 00013.png")


def test_one_archive_and_one_table_are_read_by_their_names(kept):
    assert len(list(ArchiveLayout(kept / "archives/00001.tar").everything())) == N // 2
    assert len(list(TableLayout(kept / "tables/train-0.parquet").everything())) == N // 2


def test_whatever_an_archive_holds_comes_out_as_something(tmp_path):
    path = tar(
        tmp_path / "set/a.tar",
        {
            "x/1.left.png": png(1),
            "x/1.right.png": png(2),
            "x/1.txt": b"both",
            "x/1.cls": b"7",
            "x/2": png(3),
            "x/3.jpg": b"no picture",
            "x/4.json": b"{broken",
            "x/4.webp": png(4),
            "../5.png": png(5),
        },
    )
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("x/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    (tmp_path / "set/readme.md").write_text("about")
    items = list(ArchiveLayout(tmp_path / "set").everything())
    captions = {i.path: i.caption for i in items if isinstance(i, ReferencePicture)}
    assert captions == {
        "a.tar/x/1.left.png": "both",
        "a.tar/x/1.right.png": "both",
        "a.tar/x/2": None,
        "a.tar/x/3.jpg": None,
        "a.tar/x/4.webp": None,
        "a.tar/../5.png": None,
    }
    kinds = Counter(i.kind for i in items if isinstance(i, NotLookedAt))
    assert kinds == {".cls": 1, "link or device in an archive": 1, ".md": 1}
    assert not (tmp_path / "5.png").exists()


def test_of_two_texts_the_file_of_text_counts(tmp_path):
    tar(tmp_path / "a.tar", {"1.json": b'{"caption": "of json"}', "1.png": png(1), "1.txt": b" of text \n"})
    assert [p.caption for p in ArchiveLayout(tmp_path).everything()] == ["of text"]


def test_what_was_not_downloaded_belongs_to_the_training_set(tmp_path):
    tar(tmp_path / "00000.tar", {"000000000.png": png(1)})
    (tmp_path / "00000_stats.json").write_text("{}")
    states = [("000000000", "success"), ("000000001", "failed_to_download"), ("000000002", "failed_to_resize")]
    pq.write_table(
        pa.table({"key": [k for k, _ in states], "status": [s for _, s in states]}), tmp_path / "00000.parquet"
    )
    summary = build_index(tmp_path / "index", "pixels-16", ArchiveLayout(tmp_path).everything())
    assert (summary.statuses, summary.not_looked_at) == ({"ok": 1}, {"not downloaded": 2})
    pq.write_table(
        pa.table({"jpg": [png(1), None], "status": ["success", "failed_to_download"], "caption": ["a", "b"]}),
        tmp_path / "whole.parquet",
    )
    items = list(TableLayout(tmp_path / "whole.parquet").everything())
    assert [getattr(i, "kind", i.path if isinstance(i, ReferencePicture) else None) for i in items] == [
        "whole.parquet#0",
        "not downloaded",
    ]


def in_header(data: bytes) -> bytes:
    """One bit of the third header."""
    at = data.index(b"2.png")
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: int(0.4 * len(data))],
        lambda data: data[: int(0.97 * len(data.rstrip(b"\0")))],
        lambda data: data[: data.index(b"7.png")],  # at the border of a member
        lambda data: data[: data.index(b"7.png") + 100],  # within a header
        in_header,
        lambda data: data + data,
        lambda data: data.rstrip(b"\0") + b"\0" * (-len(data.rstrip(b"\0")) % 512),
    ],
)
def test_a_damaged_archive_is_refused_or_counted(tmp_path, damage):
    path = tar(tmp_path / "set/a.tar", {f"{i}.png": png(i) for i in range(10)})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"a\.tar: damaged after (its beginning|\d\.png): .*--allow-unreadable"):
        list(ArchiveLayout(tmp_path / "set").everything())
    items = list(ArchiveLayout(tmp_path / "set", allow_unreadable=True).everything())
    read = [i for i in items if isinstance(i, ReferencePicture)]
    assert [p.data for p in read] == [png(i) for i in range(len(read))]
    assert items[-1] == NotLookedAt("a.tar", "damaged archive")


@pytest.mark.parametrize("end", [".tar.gz", ".tgz"])
def test_compressed_archives_are_read(kept, tmp_path, end):
    whole = (kept / "archives/00000.tar").read_bytes()
    (tmp_path / f"00000{end}").write_bytes(gzip.compress(whole))
    found = [(p.data, p.caption) for p in ArchiveLayout(tmp_path).everything()]
    assert found == [(p.data, p.caption) for p in ArchiveLayout(kept / "archives/00000.tar").everything()]
    (tmp_path / f"00000{end}").write_bytes(gzip.compress(whole)[:-200])
    with pytest.raises(UserError, match="damaged after"):
        list(ArchiveLayout(tmp_path).everything())


def test_files_of_macos_and_texts_without_pictures_are_counted(tmp_path):
    double = b"\0\x05\x16\x07" + bytes(40)
    tar(
        tmp_path / "a.tar",
        {"._1.jpg": double, "1.png": png(1), "._1.txt": double, "1.txt": b"one", "2.txt": b"alone", "3.json": b"{"},
    )
    items = list(ArchiveLayout(tmp_path).everything())
    assert [i.caption for i in items if isinstance(i, ReferencePicture)] == ["one"]
    assert Counter(i.kind for i in items if isinstance(i, NotLookedAt)) == {"AppleDouble": 2, ".txt": 1, ".json": 1}


@pytest.mark.parametrize(("layout", "kind"), [(ArchiveLayout, "archives"), (TableLayout, "tables")])
def test_links_are_followed_and_what_leads_nowhere_is_said(kept, tmp_path, layout, kind):
    place = tmp_path / "set"
    place.mkdir()
    (place / "linked").symlink_to(kept / kind)
    (place / "gone.tar").symlink_to(tmp_path / "nowhere")
    (place / "self").symlink_to(place)
    (place / ".index-building.inprogress").mkdir()
    pq.write_table(pa.table({"vector": [b"x"]}), place / ".index-building.inprogress/a.parquet")
    items = list(layout(place).everything())
    assert sum(isinstance(i, ReferencePicture) and i.problem is None for i in items) == N
    assert [i.path for i in items if isinstance(i, ReferencePicture) and i.problem] == ["gone.tar"]
    assert [i.path for i in items if isinstance(i, Repeated)] == ["self"]


def test_an_index_under_the_folder_is_no_training_set(kept, tmp_path):
    shutil.copytree(kept / "tables", tmp_path / "set")
    build_index(tmp_path / "set/index", "pixels-16", pictures_in(kept / "files"))
    items = list(TableLayout(tmp_path / "set").everything())
    assert sum(isinstance(i, ReferencePicture) for i in items) == N
    assert Counter(i.kind for i in items if isinstance(i, NotLookedAt)) == {".parquet": 1, ".npy": 1, ".json": 1}


def test_a_text_that_is_no_unicode_ends_no_build(tmp_path):
    odd = pa.array([b"caf\xe9"]).cast(pa.binary()).view(pa.string())
    pq.write_table(pa.table({"image": [png(1)], "caption": odd}), tmp_path / "a.parquet")
    (found,) = TableLayout(tmp_path).everything()
    assert found.caption == "caf\ufffd"


def test_a_table_says_which_column_holds_pictures_or_is_asked_about(tmp_path):
    two = pa.table({"before": [png(1)], "after": [png(2)], "caption": ["a"]})
    pq.write_table(two, tmp_path / "two.parquet")
    with pytest.raises(UserError, match=r"two\.parquet: columns before, after could hold pictures; .*--image-column"):
        TableLayout(tmp_path).everything()
    (found,) = TableLayout(tmp_path, "after").everything()
    assert (found.data, found.caption) == (png(2), "a")
    with pytest.raises(UserError, match=r"--image-column x: .*two\.parquet has no such column; it has before, after"):
        TableLayout(tmp_path, "x").everything()
    with pytest.raises(UserError, match="--image-column"):
        TableLayout(tmp_path, "caption").everything()
    notes = {
        "huggingface": json.dumps({"info": {"features": {"after": {"_type": "Image"}, "before": {"_type": "Value"}}}})
    }
    pq.write_table(two.replace_schema_metadata(notes), tmp_path / "two.parquet")
    (found,) = TableLayout(tmp_path).everything()
    assert found.data == png(2)


def test_a_row_without_bytes_is_rejected_with_its_reason(tmp_path):
    rows = [
        {"image": {"bytes": None, "path": "far/away.png"}},
        {"image": None},
        {"image": {"bytes": b"", "path": None}},
    ]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.Table.from_pylist(rows, pa.schema({"image": kind})), tmp_path / "a.parquet")
    problems = [p.problem for p in TableLayout(tmp_path).everything()]
    assert problems == ["its table holds no bytes of it, but the name of a file: far/away.png", *["an empty cell"] * 2]


def test_nothing_of_the_kind_is_one_line(tmp_path):
    (tmp_path / "a.png").write_bytes(png(1))
    with pytest.raises(UserError, match="holds no archive"):
        ArchiveLayout(tmp_path).everything()
    with pytest.raises(UserError, match="holds no Parquet file of training pictures"):
        TableLayout(tmp_path).everything()
    (tmp_path / "b.parquet").write_bytes(b"no table")
    with pytest.raises(UserError, match=r"b\.parquet: cannot be read"):
        TableLayout(tmp_path).everything()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["archives", "--layout", "webdataset"], "20 pictures, 0 of them duplicates"),
        (["tables", "--layout", "parquet", "--caption-column", "text"], "20 pictures, 0 of them duplicates"),
        (["tables", "--layout", "webdataset"], "holds no archive"),
        (["archives", "--layout", "webdataset", "--captions", "c.csv"], "--captions: for files in a folder"),
        (["files", "--image-column", "x"], "add --layout parquet"),
        (["mixed"], ".tar files may hold pictures: --layout webdataset reads them"),
    ],
)
def test_the_command_reads_each_layout(kept, tmp_path, arguments, says):
    if arguments == ["mixed"]:
        tar(kept / "mixed/a.tar", {"1.png": png(1)})
        (kept / "mixed/b.png").write_bytes(png(2))
    place, *options = arguments
    done = CliRunner().invoke(cli, ["index", "build", str(kept / place), "--out", str(tmp_path / "index"), *options])
    assert says in done.output + str(done.exception or "")
