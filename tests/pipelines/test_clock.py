"""The machine's clock may be set while a run is at work: no result and no deadline depends on it."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from audits import audit, tables

from pipelines.verifying import faults


def test_a_clock_that_jumps_by_days_changes_nothing(
    config_path: Path, clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, draw = time.time, random.Random(0)
    calls: list[float] = []

    def jumping() -> float:
        calls.append(draw.uniform(-3, 3) * 86_400)
        return now() + calls[-1]

    with monkeypatch.context() as patch:
        patch.setattr(time, "time", jumping)
        outcome = audit(config_path, tmp_path / "run", "run.deadline=2099-01-01T00:00", "run.shard_timeout_s=600")
    assert not outcome.late
    assert min(calls) < 0 < max(calls)
    assert tables(tmp_path / "run") == tables(clean)
    assert faults(tmp_path / "run") == []
