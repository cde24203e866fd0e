"""What a run says while it works: a line for people, JSON lines for logs, `progress.json` for machines.

All of it is appended to `logs/run.jsonl` as well.

On a terminal a live line (done, rate, flagged, rejected, time left); elsewhere a JSON line every few seconds. Rates and
times are of this call on a monotonic clock, so a resumed run does not count earlier work as its own.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipelines.stages.base import Receipt
from sharpaudit.errors import Status, printable
from sharpaudit.tables.files import Files
from sharpaudit.tables.records import replace_file

EVERY_S = 5.0


class Reporter:
    """Says what happens; `watch` passes receipts through and counts them.

    flagged: gives the audited prompts that triage flagged, None before it has. It is asked while a stage works only.
    """

    def __init__(self, root: Path, stream: TextIO = sys.stderr) -> None:
        self._root, self._stream, self._tty = root, stream, stream.isatty()
        self._console = Console(file=stream, highlight=False)
        self._bars = Progress(
            TextColumn("{task.description:<18}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._tty,
            transient=True,
        )
        self._last = 0.0
        self.flagged: Callable[[], int | None] = lambda: None

    def __enter__(self) -> Reporter:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def say(self, message: str, **fields: Any) -> None:
        """One line now."""
        if self._tty:
            self._console.print(printable(message, 2000), markup=False)
        self._write({"message": printable(message, 2000), **fields})

    def watch(self, stage: str, total: int, done: int, receipts: Iterable[Receipt]) -> Iterator[Receipt]:
        """The receipts of a stage of `total` rows, `done` of them committed by earlier calls."""
        begun, fresh = time.monotonic(), 0
        statuses: Counter[str] = Counter()
        task = self._bars.add_task(stage, total=total, completed=done, rate="")
        self._tell(stage, total, done, 0, 0.0, statuses, force=True)
        for receipt in receipts:
            fresh += receipt.work.rows
            statuses.update(receipt.manifest.statuses if receipt.manifest else {Status.QUARANTINED: receipt.work.rows})
            rate = fresh / max(time.monotonic() - begun, 1e-9)
            self._bars.update(task, completed=done + fresh, rate=f"{rate:,.1f}/s{self._counts(statuses)}")
            self._tell(stage, total, done, fresh, rate, statuses)
            yield receipt
        self._tell(stage, total, done, fresh, fresh / max(time.monotonic() - begun, 1e-9), statuses, force=True)
        self._bars.remove_task(task)

    def _tell(
        self, stage: str, total: int, done: int, fresh: int, rate: float, statuses: Counter[str], *, force: bool = False
    ) -> None:
        if not force and time.monotonic() - self._last < EVERY_S:
            return
        self._last = time.monotonic()
        left = total - done - fresh
        line = {
            "stage": stage,
            "rows_done": done + fresh,
            "rows_total": total,
            "rows_per_s": round(rate, 2),
            "eta_s": round(left / rate, 1) if rate > 0 else None,
            "rejected": _count_rejected(statuses),
            "flagged": self.flagged(),
        }
        replace_file(self._root / "progress.json", json.dumps(line | {"at": round(time.time(), 3)}).encode() + b"\n")
        self._write(line)

    def _counts(self, statuses: Counter[str]) -> str:
        flagged = self.flagged()
        told = "" if flagged is None else f", {flagged:,} flagged"
        rejected = _count_rejected(statuses)
        return told + (f", {rejected:,} rejected" if rejected else "")

    def _write(self, line: dict[str, Any]) -> None:
        """Into the log, and to the stream where no live line stands."""
        if not self._tty:
            self._stream.write(json.dumps(line) + "\n")
            self._stream.flush()
        log = self._root / "logs" / "run.jsonl"
        log.parent.mkdir(exist_ok=True)
        Files().append(log, json.dumps({"at": round(time.time(), 3), **line}).encode() + b"\n")


def _count_rejected(statuses: Counter[str]) -> int:
    return sum(count for status, count in statuses.items() if Status(status).is_rejection)
