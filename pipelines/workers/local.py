"""The local executor: serial, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.stages.base import TRANSIENT_TRIES, Doer, Opener, Receipt, Work
from sharpaudit.config import RunConfig
from sharpaudit.devices import share_threads, usable_cores, use_threads
from sharpaudit.errors import TransientError
from sharpaudit.tables.lock import Driver, Guard

Run = Callable[[Iterable[Work]], Iterator[Receipt]]


@contextmanager
def run_local(root: Path, config: RunConfig, driver: Driver, opener: Opener) -> Iterator[Run]:
    """Serial, in this process."""
    use_threads(share_threads([usable_cores()], 1, config.threads))
    worker = opener(root, Guard(root, driver.id))

    def run(work: Iterable[Work]) -> Iterator[Receipt]:
        for item in work:
            yield _tried(worker, item)

    yield run


def _tried(worker: Doer, item: Work) -> Receipt:
    for attempt in range(TRANSIENT_TRIES):
        try:
            return Receipt(item, worker.do(item))
        except TransientError as error:
            if attempt == TRANSIENT_TRIES - 1:
                return Receipt(item, None, f"failed {TRANSIENT_TRIES} times: {error}")
    raise AssertionError("unreachable")
