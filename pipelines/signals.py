"""SIGINT and SIGTERM: the first abandons the shard at hand, which the commit protocol makes safe; the second forces."""

from __future__ import annotations

import os
import signal
from types import FrameType


class InterruptedRunError(BaseException):
    """Raised in the main thread by the first signal. A BaseException: no handler of errors may swallow it."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}; the same command resumes")
        self.exit_code = 128 + signum


def install() -> None:
    """Install both handlers; only the main thread may."""
    asked: list[int] = []

    def handle(signum: int, _: FrameType | None) -> None:
        if asked:
            os._exit(128 + signum)
        asked.append(signum)
        raise InterruptedRunError(signum)

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, handle)
