"""The machine's clock may be set while a run is at work: no result, no deadline and no timeout depends on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.operations.verify import faults
from tests.support.audits import audit, tables


def test_a_clock_that_jumps_by_days_changes_nothing(
    config_path: Path, clean: Path, tmp_path: Path, jumping_clock: list[float]
) -> None:
    outcome = audit(config_path, tmp_path / "run", "run.deadline=2099-01-01T00:00", "run.shard_timeout_s=600")
    assert not outcome.late
    assert min(jumping_clock) < 0 < max(jumping_clock)
    assert tables(tmp_path / "run") == tables(clean)
    assert faults(tmp_path / "run") == []


@pytest.mark.chaos
@pytest.mark.usefixtures("ray_cluster")
def test_a_clock_that_jumps_ends_no_worker(
    config_path: Path, clean: Path, tmp_path: Path, jumping_clock: list[float]
) -> None:
    """A shard that ends one worker would be set aside: none is, though the driver's clock jumps past the timeout."""
    root = tmp_path / "run"
    ray = ("run.executor=ray", "run.workers=2", "run.threads=1", "run.max_worker_deaths=1")
    assert audit(config_path, root, *ray, "run.shard_timeout_s=120").quarantined == []
    assert min(jumping_clock) < -120 < 120 < max(jumping_clock)
    assert tables(root) == tables(clean)
