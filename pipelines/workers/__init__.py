"""Who does the work: this process, or Ray actors. Both behind one signature.

An executor is a context manager that yields `run(work) -> iterator of receipts`, in no promised order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.stages.base import Opener
from pipelines.workers.local import Run, run_local
from sharpaudit.config import RunConfig
from sharpaudit.tables.lock import Driver


@contextmanager
def executor(root: Path, config: RunConfig, driver: Driver, opener: Opener) -> Iterator[Run]:
    """The executor that the configuration names. opener: of those who do the work."""
    if config.executor == "ray":
        # With its own import of Ray, which takes a second, only where it is asked for.
        from pipelines.workers.ray import run_ray as chosen
    else:
        chosen = run_local
    with chosen(root, config, driver, opener) as run:
        yield run
