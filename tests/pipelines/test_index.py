"""`sharpaudit index build`: what it says of every file, when it ends with which code, and what it leaves behind."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from pipelines.cli import cli
from sharpaudit.errors import UserError
from sharpaudit.images import encode_png
from sharpaudit.matches.approximation import add_structure
from sharpaudit.matches.search import structures
from tests.support.audits import audit, tables
from tests.support.shells import bare


@pytest.fixture(autouse=True)
def own_handlers() -> Iterator[None]:
    """The command installs its own, and this process is not its."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed in range(3):
        (folder / f"{seed}.png").write_bytes(noise(seed))
    return folder


def noise(seed: int) -> bytes:
    return encode_png(np.random.default_rng(seed).integers(0, 255, (20, 20, 3), dtype=np.uint8))


def saved(kind: str, seed: int, **options: object) -> bytes:
    sink = io.BytesIO()
    Image.open(io.BytesIO(noise(seed))).save(sink, format=kind, **options)
    return sink.getvalue()


def build(folder: Path, *options: str) -> Result:
    return CliRunner().invoke(cli, ["index", "build", str(folder), "--out", str(folder.parent / "index"), *options])


def rows(folder: Path) -> dict[str, str]:
    return {row["path"]: row["status"] for row in pq.read_table(folder / "references/00000.parquet").to_pylist()}


def test_every_file_is_a_reference_a_rejected_row_or_counted_by_kind(pictures: Path, tmp_path: Path) -> None:
    """A folder as people have them; the oracle is its own list of files."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "linked.png").write_bytes(noise(10))
    several = [Image.open(io.BytesIO(noise(seed))) for seed in (11, 12)]
    mpo = io.BytesIO()
    several[0].save(mpo, format="MPO", save_all=True, append_images=several[1:])
    files = {
        "a.jfif": saved("JPEG", 20),
        "b.jpe": saved("JPEG", 21),
        "c.JPG": saved("JPEG", 22),
        "phone.jpg": mpo.getvalue(),
        "wrong.jpg": noise(23),
        "none": noise(24),
        "again.png": noise(0),
        "d.jp2": saved("JPEG2000", 25),
        "e.avif": saved("AVIF", 26),
        "empty.png": b"",
        "f.tar": b"\0" * 512,
        "0.txt": b"a caption",
        "1.txt": b"a caption",
    }
    for name, data in files.items():
        (pictures / name).write_bytes(data)
    (pictures / "sub").symlink_to(outside)
    (pictures / "dangling.jpg").symlink_to("gone")
    (outside / "loop").symlink_to(pictures)
    result = build(pictures)
    assert result.exit_code == 3
    told = rows(tmp_path / "index")
    lost = {"d.jp2", "e.avif", "empty.png", "dangling.jpg"}
    assert {path for path, status in told.items() if status != "ok"} == lost
    assert set(told) - lost == {f"{i}.png" for i in range(1, 3)} | {
        *("0.png", "a.jfif", "b.jpe", "c.JPG", "phone.jpg", "wrong.jpg", "none", "sub/linked.png")
    }
    manifest = json.loads((tmp_path / "index/manifest.json").read_bytes())
    assert (manifest["not_looked_at"], manifest["duplicates"]) == ({".tar": 1, ".txt": 2}, 1)
    names = sum(len(found) for _, _, found in os.walk(pictures, followlinks=False)) + 1
    assert names == len(told) + manifest["duplicates"] + sum(manifest["not_looked_at"].values())
    assert (
        "15 pictures, 1 of them duplicates, rejected: 4 unreadable_image; not looked at: 1 .tar, 2 .txt"
        in result.output
    )
    assert "rejected: 1 for an empty file (such as empty.png)" in result.output
    assert "rejected: 1 for not a PNG, JPEG, WEBP picture but JPEG 2000 (such as d.jp2)" in result.output
    assert "28.57% of the pictures were rejected, --max-rejected is 1.00%; the index is written" in result.output


@pytest.mark.parametrize(("allowed", "code"), [("0.24", 3), ("0.25", 0), ("1", 0)])
def test_the_share_of_rejected_pictures_decides_the_code_and_the_index_is_there(
    pictures: Path, tmp_path: Path, allowed: str, code: int
) -> None:
    (pictures / "broken.jpg").write_bytes(b"no picture")
    for i in range(5):
        shutil.copy(pictures / "0.png", pictures / f"copy-{i}.png")  # no part of the share
    result = build(pictures, "--max-rejected", allowed)
    assert result.exit_code == code
    assert "9 pictures, 5 of them duplicates, rejected: 1 unreadable_image" in result.output
    assert rows(tmp_path / "index")["broken.jpg"] == "unreadable_image"


def test_a_training_size_is_recorded_and_one_that_cannot_be_is_refused(pictures: Path, tmp_path: Path) -> None:
    assert isinstance(build(pictures, "--training-size", "2").exception, UserError)
    assert not (tmp_path / "index").exists()
    assert build(pictures, "--training-size", "10").exit_code == 0
    assert json.loads((tmp_path / "index/manifest.json").read_bytes())["training_size"] == 10


def test_captions_of_imagefolder_are_taken_or_pointed_at(pictures: Path, tmp_path: Path) -> None:
    (pictures / "metadata.csv").write_text("file_name,text\n1.png,a cat\n")
    first = build(pictures)
    assert f"--captions {pictures / 'metadata.csv'} takes them in" in first.output
    shutil.rmtree(tmp_path / "index")
    second = build(pictures, "--captions", str(pictures / "metadata.csv"))
    assert "takes them in" not in second.output
    found = pq.read_table(tmp_path / "index/references/00000.parquet").to_pylist()
    assert {row["path"]: row["caption"] for row in found} == {"0.png": None, "1.png": "a cat", "2.png": None}


def test_an_index_within_the_folder_of_its_pictures_is_no_part_of_itself(pictures: Path) -> None:
    out = CliRunner().invoke(cli, ["index", "build", str(pictures), "--out", str(pictures / "index")])
    assert out.exit_code == 0
    assert "3 pictures, 0 of them duplicates, rejected: none; not looked at: none" in out.output


def test_a_name_that_would_command_the_terminal_is_shown_as_codes(pictures: Path) -> None:
    (pictures / "\x1b[2J\n.png").write_bytes(b"")
    output = build(pictures).output
    assert "\\x1b[2J\\n.png" in output
    assert "\x1b" not in output


OTHER_USER = """
import os, sys
from click.testing import CliRunner
from pipelines.cli import cli, main
root = sys.argv[1]
# Once as the user that tests run as, so that all is imported: the other may not read where Python lies.
CliRunner().invoke(cli, ["index", "build", root + "/warm", "--out", root + "/warmed"])
if os.geteuid() == 0:
    os.seteuid(65534)
sys.argv = ["sharpaudit", "index", "build", root + "/pictures", "--out", root + "/out/index", *sys.argv[2:]]
main()
"""


def as_another_user(root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-c", OTHER_USER, str(root), *options]
    return subprocess.run(call, env=bare(), capture_output=True, text=True, timeout=60)


def test_folders_and_files_that_may_not_be_read_are_said(pictures: Path) -> None:
    """Without a pretence: tests that run as root look with the eyes of another user."""
    root = Path(tempfile.mkdtemp())
    try:
        shutil.copytree(pictures, root / "pictures")
        shutil.copytree(pictures, root / "warm")
        (root / "pictures/locked").mkdir()
        (root / "pictures/locked/a.png").write_bytes(noise(5))
        (root / "pictures/secret.png").write_bytes(noise(6))
        (root / "out").mkdir()
        for name, mode in (("pictures/locked", 0), ("pictures/secret.png", 0), ("out", 0o777), ("", 0o755)):
            (root / name).chmod(mode)
        refused = as_another_user(root)
        assert refused.returncode == 2
        assert refused.stderr.startswith(f"sharpaudit: {root}/pictures/locked: cannot list this folder")
        assert refused.stderr.count("\n") == 1
        assert list((root / "out").iterdir()) == []
        counted = as_another_user(root, "--allow-unreadable", "--max-rejected", "0.25")
        assert counted.returncode == 0, counted.stderr
        assert "rejected: 1 unreadable_image; not looked at: 1 unreadable folder" in counted.stdout
        assert "rejected: 1 for cannot be read: Permission denied (such as secret.png)" in counted.stdout
    finally:
        (root / "pictures/locked").chmod(0o755)
        shutil.rmtree(root)


STALLED = """
import sys, time
from pipelines.cli import main
from sharpaudit.matches import build
build.decode = lambda data: time.sleep(60)
sys.argv[0] = "sharpaudit"
main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_build_in_one_line_and_leaves_no_index(
    pictures: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    call = [sys.executable, "-c", STALLED, "index", "build", str(pictures), "--out", str(tmp_path / "out/index")]
    process = subprocess.Popen(call, env=bare(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while not list(tmp_path.glob("out/.index-building.inprogress/progress.json")):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (code, "")
    told = f"sharpaudit: interrupted by {number.name}; what is described stays; the same command goes on"
    assert err.splitlines()[-1] == told
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".index-building.inprogress"]


def test_what_a_killed_build_left_is_removed_and_said(pictures: Path, tmp_path: Path) -> None:
    left = tmp_path / f".index-{'0' * 32}.inprogress"
    left.mkdir()
    (left / "vectors.npy").write_bytes(b"cut")
    assert f"removed what a terminated build had left: {left}" in build(pictures).output
    assert {path.name for path in tmp_path.iterdir()} == {"index", "pictures"}


def test_an_audit_by_an_approximate_structure_says_so_and_is_bound_to_it(
    config_path: Path, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the configuration over identity and workers to the page: the whole way is what is tested."""
    monkeypatch.setattr(structures, "LEAST_ROWS", 10)
    index = Path(shutil.copytree(config_path.parent / "testbed/index", tmp_path / "index"))
    asked, root = (f"matches.index={index}", "matches.search=sq8"), tmp_path / "run"
    with pytest.raises(UserError, match=r"has no such structure .* index approximate"):
        audit(config_path, root, *asked)
    add_structure(index, "sq8", tell=lambda _: None)
    audit(config_path, root, *asked)
    facts, exact = (json.loads((folder / "report/facts.json").read_bytes()) for folder in (root, clean))
    assert (facts["bands"]["search"], facts["bands"]["recall_found"]) == ("sq8", facts["bands"]["recall_n"])
    assert facts["bands"]["recall_n"] == facts["bands"]["n_samples"]
    assert (exact["bands"]["search"], exact["bands"]["recall_n"]) == ("exact", None)
    assert "approximate (sq8): of" in (root / "report/index.html").read_text()
    assert "approximate (" not in (clean / "report/index.html").read_text()
    assert tables(root)["matches"] == tables(clean)["matches"]
    assert facts["findings"] == exact["findings"]
    assert audit(config_path, root, *asked).evaluations == 0
    with pytest.raises(UserError, match="approximate search"):
        audit(config_path, root, f"matches.index={index}")
