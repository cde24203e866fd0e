"""Is a prompt fit to be audited? It is taken exactly as it is, or refused with a reason.

Nothing is rewritten: NUL, line breaks, emoji with joiners and right-to-left text are prompts like any other.
"""

from __future__ import annotations

from sharpaudit.errors import Status

MAX_PROMPT_BYTES = 1_000_000


def check(prompt: bytes | None) -> tuple[str | None, Status]:
    """The text of the prompt with OK, or None with the reason for its refusal."""
    if prompt is None:
        return None, Status.MISSING
    if len(prompt) > MAX_PROMPT_BYTES:
        return None, Status.TOO_LONG
    try:
        text = prompt.decode()
    except UnicodeDecodeError:
        return None, Status.INVALID_UTF8
    if not text.strip():
        return None, Status.EMPTY
    return text, Status.OK
