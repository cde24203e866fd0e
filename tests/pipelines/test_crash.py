"""Crashes in this process: every crash point, every failing file operation, then the same call again."""

from __future__ import annotations

import ast
import errno
import os
import re
import resource
from functools import partial
from pathlib import Path

import pytest

from pipelines.operations.verify import faults
from sharpaudit.tables import files
from tests.support.audits import audit, command, finish, stray, tables
from tests.support.shells import bare

# Each point, and the passages of it that are struck: early ones (chaos), and one well into the run.
POINTS = {
    "attempt.written": (1, 9),
    "attempt.synced": (2, 12),
    "data.renamed": (3, 15),
    "manifest.written": (4, 18),
    "manifest.linked": (5, 20),
    "committed": (6, 22),
    "table.committed": (1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12),
    "image.stored": (1, 11),
    "network.answered": (1, 20),
    "work.taken": (1, 8),
    "work.processed": (2, 10),
    "report.written": (1,),
    "sealed": (1,),
}


QUICK = ("manifest.linked", "table.committed", "image.stored", "sealed")
"""Of these one each is tried in every test run, of all the others when there is time."""


def test_no_crash_point_is_left_out_of_the_sweep() -> None:
    root = Path(files.__file__).parents[2]
    named = set()
    for path in [*root.glob("sharpaudit/**/*.py"), *root.glob("pipelines/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "crash_point":
                assert isinstance(node.args[0], ast.Constant), path
                named.add(node.args[0].value)
    # A run forgets shards only when asked to (test_growing.py).
    assert named == set(POINTS) | {"forgotten"}


@pytest.mark.parametrize(
    ("point", "passage"),
    [
        pytest.param(point, k, marks=() if k == passages[-1] and point in QUICK else pytest.mark.chaos)
        for point, passages in POINTS.items()
        for k in passages
    ],
)
def test_an_audit_that_breaks_anywhere_is_resumed_to_the_same_tables(
    config_path: Path, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, passage: int
) -> None:
    root = tmp_path / "run"
    files._passages.clear()
    monkeypatch.setenv("SHARPAUDIT_CRASH", f"{point}:{passage}:raise")
    with pytest.raises(RuntimeError, match=f"injected at {point}"):
        audit(config_path, root)
    monkeypatch.delenv("SHARPAUDIT_CRASH")
    audit(config_path, root)
    assert tables(root) == tables(clean)
    assert not stray(root)
    assert faults(root) == []
    listed = {row["image_path"] for row in tables(root)["samples"]} | {
        r["thumbnail_path"] for r in tables(root)["matches"]
    }
    assert {path.relative_to(root).as_posix() for path in (root / "images").glob("*/*")} == listed


def test_a_full_disk_is_said_and_the_run_goes_on_after_there_is_room(
    config_path: Path, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "run"
    real = files.Files.write
    count = 0

    def full(self: files.Files, path: Path, data: bytes, mode: int = 0o600) -> None:
        nonlocal count
        count += 1
        if count > 25:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(self, path, data, mode)

    monkeypatch.setattr(files.Files, "write", full)
    with pytest.raises(OSError, match="No space left"):
        audit(config_path, root)
    monkeypatch.undo()
    audit(config_path, root)
    assert tables(root) == tables(clean)


@pytest.mark.parametrize(
    "limit",
    [2_000, *(pytest.param(n, marks=pytest.mark.chaos) for n in (20_000, 200_000))],
    ids=["2 kB", "20 kB", "200 kB"],
)
def test_a_full_disk_is_one_line_with_the_path_and_the_room_left(
    config_path: Path, clean: Path, tmp_path: Path, limit: int
) -> None:
    """The system's own refusal, of a file that grows over a limit: a table, a page, the database of the report."""
    root, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    full = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))
    # Nor may its interpreter write a part of the bytecode of this code.
    shell = bare({"PYTHONDONTWRITEBYTECODE": "1"})
    code, _, err = finish(command("run", config_path, "--out", root, cwd=elsewhere, preexec_fn=full, shell=shell))
    assert code == 1, err
    (line,) = [text for text in err.splitlines() if text.startswith("sharpaudit: ")]
    assert re.match(rf"sharpaudit: {root}/[^:]+: .*File too large.* \([\d,]+ bytes are free there\)", line)
    assert "make room and run the same command again" in line
    assert "Traceback" not in err
    audit(config_path, root)
    assert tables(root) == tables(clean)
    assert not stray(root)
