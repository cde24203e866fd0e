"""Mitigate: a prompt's pictures before and after a method, side by side, and what it took."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.operations.strips import in_rows
from sharpaudit.encoding import decoded
from sharpaudit.errors import Status, UserError, printable
from sharpaudit.images import Pixels
from sharpaudit.mitigation.base import Aimed, Case, Method, Mitigated, Unmitigated, mitigate
from sharpaudit.mitigation.targets import middle, values_of


def harmless_prompts(path: Path) -> list[str]:
    """The lines of a file that hold a prompt. Raises UserError."""
    try:
        lines = decoded(path.read_bytes(), str(path)).splitlines()
    except OSError as error:
        raise UserError(f"{printable(str(path))}: cannot read harmless prompts: {error.strerror}") from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise UserError(f"{printable(str(path))}: holds no prompt; write one a line")
    return found


def target_of(method: Method, case: Case, harmless: Sequence[str], batch_size: int) -> float | None:
    """The median of what a method brings down, over harmless prompts; None for a method that has no target.

    Raises UserError for a prompt of which it cannot be told.
    """
    if not isinstance(method, Aimed):
        return None
    found = values_of(method, case, harmless, batch_size)
    for prompt, value in zip(harmless, found, strict=True):
        if isinstance(value, Status):
            raise UserError(
                f'"{printable(prompt)}": no target can be taken from this harmless prompt: {value.describe()}'
            )
    return middle(found)


def before_and_after(chosen: Method, case: Case, batch_size: int) -> tuple[Pixels, list[dict[str, Any]]]:
    """The strip, unmitigated pictures above mitigated ones, and what each of these took.

    Raises UserError where one could not be drawn.
    """
    rows = [mitigate(one, case, batch_size) for one in (Unmitigated(), chosen)]
    drawn = [[_whole(found) for found in row] for row in rows]
    told = [
        {"picture": i, "evaluations": after.evaluations, "without": before.evaluations}
        | ({} if after.reached is None else {"reached": after.reached})
        | {name: value if math.isfinite(value) else None for name, value in after.told.items()}
        for i, (before, after) in enumerate(zip(*drawn, strict=True))
    ]
    return in_rows([[found.picture for found in row] for row in drawn]), told


def _whole(found: Mitigated | Status) -> Mitigated:
    if isinstance(found, Status):
        raise UserError(f"a picture could not be drawn: {found.describe()}")
    return found
