"""The line that a run says while it works: rates of this call alone, time left, and counts."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest

from pipelines.flow.progress import EVERY_S, Reporter
from pipelines.stages.base import Receipt, Work
from sharpaudit.tables.shards import Manifest


def receipt(rows: int, statuses: dict[str, int] | None) -> Receipt:
    """Of a shard with these outcomes; None: of one that was set aside."""
    work = Work("score", "s", rows, "")
    if statuses is None:
        return Receipt(work, None, "ended 3 workers")
    return Receipt(work, Manifest("scores", "", "s", "", "", 0, rows, statuses, "", "", 1))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A monotonic clock that a test moves; wall time stands still."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "time", lambda: 5.0)
    return now


def test_rate_and_time_left_are_those_of_this_call(tmp_path: Path, clock: list[float]) -> None:
    stream = io.StringIO()
    reporter = Reporter(tmp_path, stream)
    outcomes: list[dict[str, int] | None] = [{"ok": 10}, {"ok": 8, "non_finite": 2}, None]

    def work():
        for statuses in outcomes:
            clock[0] += 2 * EVERY_S
            yield receipt(10, statuses)

    assert len(list(reporter.watch("score", total=100, done=40, receipts=work()))) == 3
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    # Forty rows of earlier calls say nothing of today's pace: ten rows in ten seconds are one a second.
    assert [line["rows_done"] for line in lines] == [40, 50, 60, 70, 70]
    assert [line["rows_per_s"] for line in lines] == [0.0, 1.0, 1.0, 1.0, 1.0]
    assert [line["eta_s"] for line in lines] == [None, 50.0, 40.0, 30.0, 30.0]
    assert [line["rejected"] for line in lines] == [0, 0, 2, 12, 12]
    assert json.loads((tmp_path / "progress.json").read_text()) == lines[-1] | {"at": 5.0}
    logged = [json.loads(line) for line in (tmp_path / "logs/run.jsonl").read_text().splitlines()]
    assert logged == [{"at": 5.0, **line} for line in lines]


def test_lines_that_follow_each_other_closely_are_left_out_but_for_the_last(tmp_path: Path, clock: list[float]) -> None:
    stream = io.StringIO()
    reporter = Reporter(tmp_path, stream)
    list(reporter.watch("score", total=50, done=0, receipts=(receipt(10, {"ok": 10}) for _ in range(5))))
    assert [json.loads(line)["rows_done"] for line in stream.getvalue().splitlines()] == [0, 50]


def test_a_live_line_counts_what_is_flagged_and_rejected(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    reporter = Reporter(tmp_path, stream)
    reporter.flagged = lambda: 1234
    with reporter:
        for _ in reporter.watch("sample", total=20, done=0, receipts=[receipt(10, {"ok": 9, "non_finite": 1})]):
            clock[0] += 10
            reporter._bars.refresh()
    assert "1,234 flagged, 1 rejected" in stream.getvalue()
    assert "10/20" in stream.getvalue()
