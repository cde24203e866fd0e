"""SIGINT and SIGTERM: the first abandons the shard at hand, which the commit protocol makes safe; the second forces."""

from __future__ import annotations

import os
import signal
from types import FrameType


class InterruptedRunError(BaseException):
    """Ends a run that the same command resumes. A BaseException: no handler of errors may swallow it."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def install(then: str = "the same command resumes") -> None:
    """Install both handlers; only the main thread may. then: what the user is told of going on."""
    asked: list[int] = []

    def handle(signum: int, _: FrameType | None) -> None:
        if asked:
            os._exit(128 + signum)
        asked.append(signum)
        # In the main thread, wherever it stands.
        raise InterruptedRunError(f"interrupted by {signal.Signals(signum).name}; {then}", 128 + signum)

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, handle)
