"""The local executor: serial, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.stages import flow
from pipelines.stages.base import TRANSIENT_TRIES, Receipt, ShardWorker, Work
from sharpaudit.config import AuditConfig
from sharpaudit.devices import share_threads, usable_cores, use_threads
from sharpaudit.errors import TransientError
from sharpaudit.tables.lock import Driver, Guard
from sharpaudit.tables.runs import RunFolder

Run = Callable[[Iterable[Work]], Iterator[Receipt]]


@contextmanager
def run_local(root: Path, config: AuditConfig, driver: Driver) -> Iterator[Run]:
    """Serial, in this process."""
    use_threads(share_threads([usable_cores()], 1, config.run.threads))
    worker = ShardWorker(RunFolder(root, guard=Guard(root, driver.id)), flow(config))

    def run(work: Iterable[Work]) -> Iterator[Receipt]:
        for item in work:
            yield _tried(worker, item)

    yield run


def _tried(worker: ShardWorker, item: Work) -> Receipt:
    for attempt in range(TRANSIENT_TRIES):
        try:
            return Receipt(item, worker.do(item))
        except TransientError as error:
            if attempt == TRANSIENT_TRIES - 1:
                return Receipt(item, None, f"failed {TRANSIENT_TRIES} times: {error}")
    raise AssertionError("unreachable")
