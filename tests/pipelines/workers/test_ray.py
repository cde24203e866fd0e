"""The ray executor: the same tables, killed workers replaced, a poisonous shard set aside."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest

from pipelines.flow.outcome import exit_code
from pipelines.operations.verify import faults
from sharpaudit.tables.runs import RunFolder
from sharpaudit.tables.schemas import SAMPLES, SCORES
from tests.support.audits import WORKING, audit, load, moment, stray, tables

pytestmark = pytest.mark.usefixtures("ray_cluster")
RAY = ("run.executor=ray", "run.workers=2", "run.threads=1")
PROTOCOL = ("attempt.written", "attempt.synced", "data.renamed", "manifest.written", "manifest.linked")
"""Of a commit, before it is through."""


def test_ray_and_local_give_the_same_tables_also_with_other_threads(
    config_path: Path, clean: Path, tmp_path: Path
) -> None:
    audit(config_path, tmp_path / "run", "run.executor=ray", "run.workers=3", "run.threads=2")
    assert tables(tmp_path / "run") == tables(clean)
    assert not list((tmp_path / "run" / "workers").iterdir())


def wait_for_no_worker() -> None:
    """Until no actor of ours lives in the tests' cluster: those that were killed, and those that a run ended."""
    deadline = time.monotonic() + 30
    while left := [p for p in psutil.Process().children(recursive=True) if "ray::ShardActor" in told(p)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def told(process: psutil.Process) -> str:
    """The command line; none of a process that has just ended."""
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def killed_once(config_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, point: str, passage: int) -> None:
    marker = root.with_suffix(".struck")
    monkeypatch.setenv("SHARPAUDIT_CRASH", f"{point}:{passage}:kill@{marker}")
    outcome = audit(config_path, root, *RAY)
    assert marker.exists(), "no worker passed that point"
    assert outcome.quarantined == []
    wait_for_no_worker()


@pytest.mark.chaos
def test_a_killed_worker_is_replaced_and_nothing_is_done_twice(
    config_path: Path, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_once(config_path, tmp_path / "run", monkeypatch, "work.processed", 2)
    assert tables(tmp_path / "run") == tables(clean)


@pytest.mark.chaos
def test_a_worker_killed_after_its_commit_leaves_one_manifest(
    config_path: Path, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = RunFolder.open(clean).table(SAMPLES).manifests()[0].shard
    killed_once(config_path, tmp_path / "run", monkeypatch, f"committed/{shard}", 1)
    assert tables(tmp_path / "run") == tables(clean)
    folder = RunFolder.open(tmp_path / "run").table(SAMPLES)
    (part,) = folder.folder.glob(f"part-{shard}-*")
    # Whoever took the shard next wrote nothing: its file is older than the blow.
    assert part.stat().st_mtime_ns <= (tmp_path / "run.struck").stat().st_mtime_ns


@pytest.mark.chaos
@pytest.mark.parametrize("where", [*WORKING, *PROTOCOL, "image.stored"])
def test_a_worker_killed_in_any_stage_changes_nothing(
    config_path: Path, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    sampled = RunFolder.open(clean).table(SAMPLES).manifests()[0].shard
    # Points that the driver passes too, when it commits the corpus, need the name of a worker's shard.
    points = {name: f"{name}/{sampled}" for name in PROTOCOL} | {"image.stored": "image.stored"}
    killed_once(config_path, tmp_path / "run", monkeypatch, points.get(where) or moment(clean, where, 1), 1)
    assert tables(tmp_path / "run") == tables(clean)
    monkeypatch.delenv("SHARPAUDIT_CRASH")
    assert audit(config_path, tmp_path / "run").evaluations == 0
    assert not stray(tmp_path / "run")


@pytest.mark.chaos
@pytest.mark.parametrize("where", ["work.processed", "attempt.written"])
def test_a_hung_worker_is_ended_and_its_shard_done_by_another(
    config_path: Path, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """At its work, or before its data are synced: a disk may hang as well as a device."""
    marker = tmp_path / "struck"
    shard = next(m.shard for m in RunFolder.open(clean).table(SCORES).current() if m.shard.startswith("audit"))
    point = f"score/{shard}" if where == "work.processed" else shard
    monkeypatch.setenv("SHARPAUDIT_CRASH", f"{where}/{point}:1:stall@{marker}")
    outcome = audit(config_path, tmp_path / "run", *RAY, "run.shard_timeout_s=8", "run.max_worker_deaths=10")
    assert marker.exists(), "no worker hung"
    assert outcome.quarantined == []
    assert tables(tmp_path / "run") == tables(clean)
    assert faults(tmp_path / "run") == []
    audit(config_path, tmp_path / "run")
    assert not stray(tmp_path / "run")


@pytest.mark.chaos
def test_a_slow_worker_that_shows_life_is_left_alone(
    config_path: Path, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over half a second an evaluation: a shard of pictures, three batches, takes longer than a silence may."""
    monkeypatch.setenv("SHARPAUDIT_CRASH", "network.answered:0:slow")
    root = tmp_path / "run"
    large = ("run.samples_per_shard=48", "model.batch_size=16")
    outcome = audit(config_path, root, *RAY, *large, "run.shard_timeout_s=14", "run.max_worker_deaths=1")
    assert outcome.quarantined == []
    assert max(m.duration_s for m in RunFolder.open(root).table(SAMPLES).manifests()) > 14
    assert tables(root) == tables(clean)


@pytest.mark.chaos
@pytest.mark.parametrize("action", ["kill", "segfault", "exit"])
def test_a_poisonous_shard_is_set_aside_said_and_tried_again_by_the_next_call(
    config_path: Path, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    root = tmp_path / "run"
    shards = [m.shard for m in RunFolder.open(clean).table(SCORES).current() if m.shard.startswith("audit")]
    monkeypatch.setenv("SHARPAUDIT_CRASH", f"work.taken/score/{shards[0]}:0:{action}")
    outcome = audit(config_path, root, *RAY, "run.max_worker_deaths=2")
    assert [entry["shard"] for entry in outcome.quarantined] == [shards[0]]
    lost = [row for row in tables(root)["triage"] if row["status"] == "quarantined"]
    assert len(lost) == outcome.quarantined[0]["rows"] == 40
    assert outcome.facts["reconciles"]
    assert "ended 2 workers" in (root / "report/index.html").read_text()
    assert exit_code(outcome, load(config_path)) == 1
    monkeypatch.delenv("SHARPAUDIT_CRASH")
    assert audit(config_path, root, *RAY).quarantined == []
    assert tables(root) == tables(clean)


def test_an_error_in_a_worker_is_the_driver_s_error(
    config_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARPAUDIT_CRASH", "work.processed:1:raise")
    with pytest.raises(RuntimeError, match=r"injected at work\.processed"):
        audit(config_path, tmp_path / "run", *RAY)
    assert not (tmp_path / "run" / "run.lock").exists()
