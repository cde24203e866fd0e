"""Real kills: of the driver, of a worker; signals; two drivers. One of each here, seeded sweeps under `chaos`."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

import psutil
import pytest

from pipelines.operations.status import describe
from pipelines.operations.verify import faults
from sharpaudit.tables.runs import RunFolder
from tests.support.audits import WORKING, audit, command, finish, moment, stray, tables

RAY = ("--set", "run.executor=ray", "--set", "run.workers=2", "--set", "run.threads=1")


def left(root: Path, started: list[psutil.Process]) -> list[psutil.Process]:
    """What still runs of audits below `root`: their own processes, found by name, and those that they had started.

    A test knows its own, so that others may start clusters beside it.
    """
    others = (p for p in psutil.process_iter(["cmdline"]) if p.pid != os.getpid())
    named = [p for p in others if str(root) in " ".join(p.info["cmdline"] or [])]
    found = []
    for process in (*named, *started):
        with suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@pytest.fixture(scope="module")
def to_end(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[psutil.Process]]:
    """What killed drivers had started: nothing of it, nor of any audit here, may live when this file is through.

    Not awaited at once: workers end within 2 s, but Ray's own agents first try to tell their killed head, for up to a
    minute, and the same command must work beside them.
    """
    started: list[psutil.Process] = []
    yield started
    root, deadline = tmp_path_factory.getbasetemp(), time.monotonic() + 150
    while left(root, started) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left(root, started)


def started_by(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes of a run over ray, its cluster's among them."""
    found, names = psutil.Process(process.pid).children(recursive=True), set()
    for child in found:
        with suppress(psutil.NoSuchProcess):
            names.add(child.name())
    assert {"raylet", "gcs_server"} <= names
    return found


def wait_until(come_about: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Until the run of that process has got there."""
    deadline = time.monotonic() + 300
    while not come_about():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def run_and_compare(config_path: Path, root: Path, clean: Path, *options: str) -> None:
    code, _, err = finish(command("run", config_path, "--out", root, *options))
    assert code == 0, err
    assert tables(root) == tables(clean)


def kill_driver(config_path: Path, root: Path, point: str, *options: str) -> None:
    code, _, err = finish(command("run", config_path, "--out", root, *options, crash=f"{point}:1:kill@{root}.struck"))
    assert code == -signal.SIGKILL, err


def test_a_killed_driver_is_resumed_by_the_same_command(config_path: Path, clean: Path, tmp_path: Path) -> None:
    kill_driver(config_path, tmp_path / "run", "table.committed/scores")
    run_and_compare(config_path, tmp_path / "run", clean)


@pytest.mark.chaos
@pytest.mark.parametrize("stage", ["ingest", *WORKING, "report"])
def test_drivers_killed_in_every_stage(config_path: Path, clean: Path, tmp_path: Path, stage: str) -> None:
    outside = {"ingest": "table.committed/corpus", "report": "report.written"}
    kill_driver(config_path, tmp_path / "run", outside.get(stage) or moment(clean, stage, 0))
    audit(config_path, tmp_path / "run")
    assert tables(tmp_path / "run") == tables(clean)


def kill_ray_driver_during(table: str, config_path: Path, root: Path) -> list[psutil.Process]:
    """Kill it at a drawn moment after the first shard of a table, and return the processes that it had started."""
    process = command("run", config_path, "--out", root, *RAY)
    wait_until(lambda: any(root.glob(f"{table}/*/manifests/*.json")), process)
    time.sleep(random.Random(table).uniform(0, 0.2))
    assert any((root / "workers").iterdir())
    started = started_by(process)
    process.kill()
    finish(process)
    # Else the run was over before the blow fell.
    assert not (root / "MANIFEST.sha256").exists()
    return started


@pytest.mark.chaos
def test_ray_runs_whose_driver_is_killed_at_a_random_time_leave_no_process(
    config_path: Path, clean: Path, tmp_path: Path, to_end: list[psutil.Process]
) -> None:
    for table in ("scores", "samples", "matches"):
        to_end += kill_ray_driver_during(table, config_path, tmp_path / table)
        run_and_compare(config_path, tmp_path / table, clean, *RAY)


@pytest.mark.chaos
def test_a_second_signal_forces(config_path: Path, tmp_path: Path, to_end: list[psutil.Process]) -> None:
    process = command("run", config_path, "--out", tmp_path / "run", *RAY, crash="work.processed:2:stall")
    # It has begun its stages, and its workers are there.
    wait_until((tmp_path / "run/progress.json").exists, process)
    wait_until(lambda: any((tmp_path / "run").glob("workers/*.json")), process)
    to_end += started_by(process)
    begun = time.monotonic()
    os.kill(process.pid, signal.SIGTERM)
    os.kill(process.pid, signal.SIGINT)
    code, _, err = finish(process)
    assert code in (128 + signal.SIGINT, 128 + signal.SIGTERM), err
    assert time.monotonic() - begun < 60


def drive(config_path: Path, root: Path) -> None:
    """A driver, in a process that was forked with its libraries loaded."""
    audit(config_path, root, "run.threads=1")


@pytest.mark.chaos
def test_fifty_drivers_killed_at_random_moments_lose_nothing(config_path: Path, clean: Path, tmp_path: Path) -> None:
    """Each driver is killed at a drawn moment and the next one goes on; a run that ended is verified, another begun."""
    context = get_context("forkserver")
    # What takes seconds to import is imported once, so that the blows fall on the work.
    context.set_forkserver_preload(["audits", "torch", "duckdb"])
    draw, kills, finished, underway = random.Random(0), 0, 0, 0
    whole = 0.0
    for _ in range(2):  # the first starts the server
        process = context.Process(target=drive, args=(config_path, tmp_path / f"whole-{whole:.3f}"))
        begun = time.monotonic()
        process.start()
        process.join()
        whole = time.monotonic() - begun
        assert process.exitcode == 0
    # On until half of them fell between the first commit and the end: before it nothing could be lost.
    while kills < 50 or underway < 25:
        root = tmp_path / f"run-{finished}"
        process = context.Process(target=drive, args=(config_path, root))
        process.start()
        process.join(draw.uniform(0.05, 0.9) * whole)
        if process.exitcode is None:
            process.kill()
            process.join()
            kills += 1
            underway += any(root.glob("*/*/manifests/*.json")) and not (root / "MANIFEST.sha256").exists()
            continue
        assert process.exitcode == 0
        assert tables(root) == tables(clean)
        assert faults(root) == []
        finished += 1
    run_and_compare(config_path, tmp_path / f"run-{finished}", clean)
    assert faults(tmp_path / f"run-{finished}") == []
    assert not stray(tmp_path / f"run-{finished}")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_in_order_and_resumably(
    config_path: Path, clean: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    process = command("run", config_path, "--out", tmp_path / "run", crash="work.processed:3:stall")
    wait_until((tmp_path / "run/progress.json").exists, process)
    os.kill(process.pid, number)
    exit_code, _, err = finish(process)
    assert exit_code == code, err
    assert "the same command resumes" in err
    assert not (tmp_path / "run" / "run.lock").exists()
    audit(config_path, tmp_path / "run")
    assert tables(tmp_path / "run") == tables(clean)


def test_two_drivers_on_one_folder(config_path: Path, tmp_path: Path) -> None:
    first = command("run", config_path, "--out", tmp_path / "run", crash="work.processed:3:stall")
    wait_until((tmp_path / "run/progress.json").exists, first)
    code, _, err = finish(command("run", config_path, "--out", tmp_path / "run"))
    assert code == 2
    assert f"process {first.pid} on this machine is already running this audit" in err
    working = describe(RunFolder.open(tmp_path / "run"))
    assert (working["state"], working["progress"]["stage"]) == ("running", "fit_differences")
    assert working["driver"].startswith(f"process {first.pid} on ")
    first.kill()
    finish(first)
    left = describe(RunFolder.open(tmp_path / "run"))
    assert (left["state"], left["driver"], left["progress"]) == ("interrupted", None, None)
    assert left["tables"]["fit/unconditional"]["complete"]
    assert not left["tables"]["fit/differences"]["complete"]
    assert not left["tables"]["scores"]["shards"]
