"""Full sweeps in this process: every crash point far into the run, and every kind of file operation failing."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from audits import CONFIG, SIZES, audit, stray, tables
from faulty import OPERATIONS, LosingFiles, PowerLossError

from pipelines.verifying import faults
from sharpaudit.lab.analytic import write
from sharpaudit.tables import files
from sharpaudit.tables.files import Files
from sharpaudit.tables.query import open_file
from sharpaudit.tables.records import unseal
from sharpaudit.tables.shards import Manifest, verified_bytes

pytestmark = pytest.mark.chaos
# How many passages a call survives: fewer pictures than a shard holds would never finish one.
POINTS = {
    "attempt.written": 4,
    "attempt.synced": 4,
    "data.renamed": 4,
    "manifest.written": 4,
    "manifest.linked": 4,
    "committed": 4,
    "table.committed": 2,
    "image.stored": 40,
    "work.taken": 4,
    "work.processed": 4,
    "report.written": 1,
    "sealed": 1,
}


@pytest.fixture(scope="module")
def config_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    write(folder / "testbed", SIZES)
    (folder / "audit.toml").write_text(CONFIG)
    return folder / "audit.toml"


@pytest.fixture(scope="module")
def clean(config_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("clean") / "run"
    audit(config_path, root)
    return tables(root)


@pytest.mark.parametrize("point", POINTS)
def test_a_run_that_breaks_again_and_again_still_ends_right(
    config_path: Path, clean: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """One run folder, broken again and again ever further on, as an unlucky night would."""
    root, broken = tmp_path / "run", 0
    for _ in range(80):
        files._passages.clear()
        # A call that gets nowhere would be broken for ever: after twenty the fault is lifted.
        monkeypatch.setenv("SHARPAUDIT_CRASH", f"{point}:{POINTS[point]}:raise" if broken < 20 else "")
        try:
            audit(config_path, root)
        except RuntimeError as error:
            assert f"injected at {point}" in str(error)
            broken += 1
        else:
            break
    assert broken > 0
    assert tables(root) == clean
    assert not stray(root)


def failing(operation: str, every: int) -> Callable[..., None]:
    """The operation, which fails with a full disk at every `every`-th call."""
    real, count = getattr(Files, operation), 0

    def fail(self: Files, *arguments: Any) -> None:
        nonlocal count
        count += 1
        if count % every == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[-1]))
        real(self, *arguments)

    return fail


@pytest.mark.parametrize("every", [23, 61, 97])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_disk_that_fails_again_and_again_loses_nothing(
    config_path: Path,
    clean: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    operation: str,
    every: int,
) -> None:
    root, failed = tmp_path / "run", 0
    monkeypatch.setattr(Files, operation, failing(operation, every))
    for _ in range(200):
        try:
            audit(config_path, root)
        except OSError as error:
            assert error.errno == errno.ENOSPC
            failed += 1
        else:
            break
    monkeypatch.undo()
    audit(config_path, root)
    assert failed or operation == "link"
    assert tables(root) == clean
    assert not stray(root)


def whole_interface(monkeypatch: pytest.MonkeyPatch, losing: LosingFiles) -> None:
    """Every file operation of this process goes to `losing`, whoever makes it."""
    for name in (*OPERATIONS, "remove", "make_folder"):
        real = getattr(losing, name)
        monkeypatch.setattr(Files, name, lambda self, *args, _real=real, **kwargs: _real(*args, **kwargs))


@pytest.fixture(scope="module")
def n_operations(config_path: Path, tmp_path_factory: pytest.TempPathFactory) -> int:
    counting = LosingFiles()
    with pytest.MonkeyPatch.context() as patch:
        whole_interface(patch, counting)
        audit(config_path, tmp_path_factory.mktemp("counted") / "run")
    return counting.count


@pytest.mark.parametrize("names", ["all", "half", "none"])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.99])
def test_a_loss_of_power_takes_nothing_that_was_committed(
    config_path: Path,
    clean: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    n_operations: int,
    share: float,
    names: str,
) -> None:
    """After that share of all file operations of a run. What had not been synced is lost; a kill does not show that."""
    root = tmp_path / "run"
    losing = LosingFiles(round(share * n_operations), names, root)
    whole_interface(monkeypatch, losing)
    # What the process still tries without the interface meets a folder that is gone.
    with pytest.raises((PowerLossError, FileNotFoundError)):
        audit(config_path, root)
    monkeypatch.undo()
    shutil.rmtree(root, ignore_errors=True)
    (tmp_path / "aside").rename(root)
    started_again(root)
    for manifest in losing.lasting:
        held = Manifest(**unseal(manifest))
        verified_bytes(manifest.parents[1] / held.file, held)
    assert losing.lasting or share < 0.1
    audit(config_path, root)
    assert tables(root) == clean
    assert not stray(root)
    assert faults(root) == []
    with open_file(root / "audit.duckdb") as connection:
        assert connection.execute("SELECT count(*) FROM scores").fetchall() == [(len(clean["scores"]),)]


def started_again(root: Path) -> None:
    """The lock that the loss left is of a machine before it was started again: here this process lives on."""
    lock = root / "run.lock"
    if lock.exists() and lock.stat().st_size:
        tree = json.loads(lock.read_bytes())
        tree["process"]["boot"] = "the one before"
        lock.write_text(json.dumps(tree))
