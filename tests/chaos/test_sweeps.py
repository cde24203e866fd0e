"""Full sweeps in this process: every crash point far into the run, and every kind of file operation failing."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipelines.flow import progress
from pipelines.operations.prune import prune
from pipelines.operations.verify import faults
from sharpaudit.lab.analytic import write
from sharpaudit.tables import files
from sharpaudit.tables.files import Files
from sharpaudit.tables.query import open_file
from sharpaudit.tables.records import read_checksummed
from sharpaudit.tables.runs import RunFolder
from sharpaudit.tables.schemas import SCORES
from sharpaudit.tables.shards import Manifest, verified_bytes
from tests.support.audits import CONFIG, SIZES, audit, flip, stray, tables
from tests.support.faulty import OPERATIONS, LosingFiles, PowerLossError

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


@pytest.fixture(autouse=True, scope="module")
def no_clock() -> Iterator[None]:
    """No progress is told in between: how many operations a run takes would depend on how long it takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "EVERY_S", math.inf)
        yield


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
        # A call that gets nowhere would be broken for ever: after ten the fault is lifted.
        action = "enospc" if broken % 2 else "raise"
        monkeypatch.setenv("SHARPAUDIT_CRASH", f"{point}:{POINTS[point]}:{action}" if broken < 10 else "")
        try:
            audit(config_path, root)
        except (RuntimeError, OSError) as error:
            assert point in str(error)
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


@pytest.mark.parametrize("every", [47, 97])
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
    for name in (*OPERATIONS, "remove", "add_folder", "at_once"):
        real = getattr(losing, name)
        monkeypatch.setattr(Files, name, lambda self, *args, _real=real, **kwargs: _real(*args, **kwargs))


def n_operations_of(work: Callable[[], object]) -> int:
    counting = LosingFiles()
    with pytest.MonkeyPatch.context() as patch:
        whole_interface(patch, counting)
        work()
    return counting.count


@pytest.fixture(scope="module")
def n_operations(config_path: Path, tmp_path_factory: pytest.TempPathFactory) -> int:
    return n_operations_of(lambda: audit(config_path, tmp_path_factory.mktemp("counted") / "run"))


def struck(losing: LosingFiles, monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> None:
    """Do the work until the power fails. What of the run the loss left then lies in its place."""
    root = losing.root
    assert root is not None
    with monkeypatch.context() as patch:
        whole_interface(patch, losing)
        # What the process still tries without the interface meets a folder that is gone.
        with pytest.raises((PowerLossError, FileNotFoundError)):
            work()
    shutil.rmtree(root, ignore_errors=True)
    root.with_name("aside").rename(root)
    # The lock is of a machine before it was started again: here this process lives on.
    lock = root / "run.lock"
    if lock.exists() and lock.stat().st_size:
        tree = json.loads(lock.read_bytes())
        tree["process"]["boot"] = "the one before"
        lock.write_text(json.dumps(tree))


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
    struck(losing, monkeypatch, lambda: audit(config_path, root))
    for manifest in losing.lasting:
        held = Manifest(**read_checksummed(manifest))
        verified_bytes(manifest.parents[1] / held.file, held)
    assert losing.lasting or share < 0.1
    audit(config_path, root)
    assert tables(root) == clean
    assert not stray(root)
    assert faults(root) == []
    with open_file(root / "audit.duckdb") as connection:
        assert connection.execute("SELECT count(*) FROM scores").fetchall() == [(len(clean["scores"]),)]


def mend(config_path: Path, root: Path) -> None:
    audit(config_path, root, repaired=True)


def drop(config_path: Path, root: Path) -> None:
    prune(root)


@pytest.fixture(scope="module")
def before(config_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Callable[..., None], tuple[Path, int]]:
    """A finished run for each and the operations that it takes there: damaged, or with shards of former settings."""
    damaged, outdated = (tmp_path_factory.mktemp(name) / "run" for name in ("damaged", "outdated"))
    audit(config_path, damaged)
    folder = RunFolder.open(damaged).table(SCORES)
    flip(folder.path(folder.current()[0]))
    audit(config_path, outdated, "triage.alpha=0.1")
    audit(config_path, outdated, update=True)
    found = {}
    for work, root in ((mend, damaged), (drop, outdated)):
        # Under the same name: a report is made again where a run is called otherwise.
        copy = Path(shutil.copytree(root, tmp_path_factory.mktemp("counted") / "run"))
        found[work] = root, n_operations_of(partial(work, config_path, copy))
    return found


@pytest.mark.parametrize("names", ["all", "none"])
@pytest.mark.parametrize("share", [0.05, 0.35, 0.65, 0.95])
@pytest.mark.parametrize("work", [mend, drop])
def test_a_loss_of_power_while_a_run_is_mended_or_pruned_takes_nothing_either(
    config_path: Path,
    clean: dict[str, Any],
    before: dict[Callable[..., None], tuple[Path, int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    work: Callable[[Path, Path], None],
    share: float,
    names: str,
) -> None:
    kept, count = before[work]
    root = Path(shutil.copytree(kept, tmp_path / "run"))
    losing = LosingFiles(round(share * count), names, root)
    losing.durable(root)
    struck(losing, monkeypatch, lambda: work(config_path, root))
    audit(config_path, root, repaired=work is mend)
    assert tables(root) == clean
    assert not stray(root)
    assert faults(root) == []
    work(config_path, root)
    assert not prune(root, dry_run=True).shards
    assert tables(root) == clean
    assert faults(root) == []
