"""What can go wrong, in four families, and what can become of a row.

`UserError`: the input must change; shown as one line, exit code 2. `IntegrityError`: what was committed is
no longer what is there; one line, exit code 1. `TransientError`: the same call may succeed; retried where it
spoils a shard, else one line, exit code 1. An `OSError` names a file that cannot be used as asked: one line, exit
code 2, or 1 where the disk is at fault. Everything else is a bug and keeps its traceback, exit code 1. A row
never raises: it gets a `Status`, whose sentence is what the report prints.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from enum import StrEnum

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG}
"""Of an OSError: a disk that is full or fails. One line, exit code 1: the same call goes on once there is room."""


class UserError(Exception):
    """Bad input: the message is one line that names the value, what is allowed and the fix."""


class IntegrityError(Exception):
    """A committed file is missing, changed or contradicts another: one line that names it, exit code 1."""


class TransientError(Exception):
    """A failure that may pass, such as a lost file server: the shard is tried again."""


class Status(StrEnum):
    """The outcome of one row. Everything but OK and CLEARED is a rejection, counted and shown."""

    OK = "ok"
    CLEARED = "cleared"
    EMPTY = "empty"
    MISSING = "missing"
    INVALID_UTF8 = "invalid_utf8"
    TOO_LONG = "too_long"
    MALFORMED_ROW = "malformed_row"
    IN_AUDIT = "in_audit"
    IN_CALIBRATION = "in_calibration"
    FAMILY_REPRESENTED = "family_represented"
    NON_FINITE = "non_finite"
    OUT_OF_MEMORY = "out_of_memory"
    QUARANTINED = "quarantined"
    NO_SCORE = "no_score"
    UNREADABLE_IMAGE = "unreadable_image"
    NO_DESCRIPTOR = "no_descriptor"
    EXCLUDED = "excluded"
    NOT_STEERABLE = "not_steerable"

    def describe(self) -> str:
        """The sentence that a reader of the report sees."""
        return _SENTENCES[self]

    @property
    def is_rejection(self) -> bool:
        """Whether a row of this status carries no result."""
        return self not in (Status.OK, Status.CLEARED)


_SENTENCES = {
    Status.OK: "The row was processed.",
    Status.CLEARED: "An earlier tier cleared the prompt, so this tier did not evaluate it.",
    Status.EMPTY: "The prompt is empty or blank, which is the unconditional case itself.",
    Status.MISSING: "The row holds no prompt (a null or an absent field).",
    Status.INVALID_UTF8: "The prompt is not UTF-8 (bytes of another encoding, or a lone surrogate): save it as UTF-8.",
    Status.TOO_LONG: "The prompt is longer than the limit of one megabyte.",
    Status.MALFORMED_ROW: "The row could not be parsed by the rules of its file format.",
    Status.IN_AUDIT: "The prompt's family is audited, so it may not calibrate the audit.",
    Status.IN_CALIBRATION: "The prompt's family already calibrates this run, so it is not audited.",
    Status.FAMILY_REPRESENTED: "Another prompt of the same family already stands for it in the calibration set.",
    Status.NON_FINITE: "The model's output was NaN or infinite.",
    Status.OUT_OF_MEMORY: "A single prompt did not fit into the device's memory.",
    Status.QUARANTINED: "The row's shard was set aside: it ended several workers, or the deadline came first.",
    Status.NO_SCORE: "An earlier stage rejected the prompt, so there is nothing to decide.",
    Status.UNREADABLE_IMAGE: "The picture could not be decoded within the limits.",
    Status.NO_DESCRIPTOR: "The picture has no usable descriptor (constant or non-finite).",
    Status.EXCLUDED: "The calibration prompt was excluded by the configuration, so it calibrates nothing.",
    Status.NOT_STEERABLE: "The model has nothing that this method of mitigation could change.",
}


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint such as ' (did you mean "alpha"?)', or an empty string when nothing is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f' (did you mean "{close[0]}"?)' if close else ""


def printable(text: str, limit: int = 200) -> str:
    """`text` without control, bidirectional or surrogate characters, for a terminal or a log.

    Prompts, paths and ids come from outside: an escape sequence in one of them must not reach a
    terminal. Such characters become their escaped form, and the result is cut at `limit` characters.
    """
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: limit + 1])
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"
