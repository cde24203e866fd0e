"""What may pass is tried again; what does not is set aside, and stops a run only where all that follows needs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.flow.signals import InterruptedRunError
from pipelines.operations.verify import faults
from pipelines.stages import STAGES
from sharpaudit.tables import files
from sharpaudit.tables.runs import RunFolder
from tests.support.audits import audit, tables

LOCAL: tuple[str, ...] = ()
RAY = ("run.executor=ray", "run.workers=2", "run.threads=1")


@pytest.fixture(autouse=True)
def prepared(request: pytest.FixtureRequest) -> None:
    """A fault of an earlier test in this process counts for none here; cases over ray use the shared cluster."""
    files._passages.clear()
    if hasattr(request.node, "callspec") and request.node.callspec.params["executor"]:
        request.getfixturevalue("ray_cluster")


def shard_of(clean: Path, stage: str) -> str:
    """One that an uninterrupted run has, of the audited prompts where there are several roles."""
    shards = [manifest.shard for manifest in RunFolder.open(clean).table(STAGES[stage].table).current()]
    return next((shard for shard in shards if shard.startswith("audit")), shards[0])


def test_a_failure_that_passes_costs_nothing(
    config_path: Path, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARPAUDIT_CRASH", f"work.taken/score/{shard_of(clean, 'score')}:1:transient")
    assert audit(config_path, tmp_path / "run").quarantined == []
    assert tables(tmp_path / "run") == tables(clean)


@pytest.mark.parametrize("executor", [LOCAL, pytest.param(RAY, marks=pytest.mark.chaos)], ids=["local", "ray"])
def test_a_shard_that_fails_every_time_is_set_aside_and_tried_again_by_the_next_call(
    config_path: Path, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor: tuple[str, ...]
) -> None:
    shard = shard_of(clean, "score")
    monkeypatch.setenv("SHARPAUDIT_CRASH", f"work.taken/score/{shard}:0:transient")
    (lost,) = audit(config_path, tmp_path / "run", *executor).quarantined
    assert (lost["shard"], lost["reason"]) == (shard, "failed 3 times: injected at work.taken")
    monkeypatch.delenv("SHARPAUDIT_CRASH")
    assert audit(config_path, tmp_path / "run", *executor).quarantined == []
    assert tables(tmp_path / "run") == tables(clean)


@pytest.mark.parametrize(
    ("stage", "executor"),
    [
        ("fit_subspace", LOCAL),
        *(pytest.param(stage, LOCAL, marks=pytest.mark.chaos) for stage in ("fit_unconditional", "triage", "bands")),
        pytest.param("fit_subspace", RAY, marks=pytest.mark.chaos),
    ],
)
def test_a_run_without_what_all_of_it_needs_ends_in_one_line_and_goes_on_later(
    config_path: Path,
    clean: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    executor: tuple[str, ...],
) -> None:
    root = tmp_path / "run"
    fault = "kill" if executor else "transient"
    monkeypatch.setenv("SHARPAUDIT_CRASH", f"work.taken/{stage}/{shard_of(clean, stage)}:0:{fault}")
    reason = "ended 2 workers" if executor else "failed 3 times"
    told = rf"^{stage}: shard \S+ {reason}.*every later stage needs it.*give the same command again$"
    with pytest.raises(InterruptedRunError, match=told) as caught:
        audit(config_path, root, *executor, *(["run.max_worker_deaths=2"] if executor else []))
    assert caught.value.exit_code == 1
    assert not (root / "report").exists()
    monkeypatch.delenv("SHARPAUDIT_CRASH")
    audit(config_path, root)
    assert tables(root) == tables(clean)
    assert faults(root) == []
