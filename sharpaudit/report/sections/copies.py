"""What the report says of copies: how many among what was generated, how many by chance, and what the line does.

Three groups of audited prompts are generated and told apart: those that the flags chose, those that rank as high
without calibration prompts of their style, and the others that were drawn as controls. Of each, the prompts that were
compared (at least one picture was matched), those with a copy, and the number that chance would make copies if all of
them were harmless: compared prompts times the band's false-match rate, its mean and its 95% bound (matches/decide.py).
That rate is of harmless prompts with as many pictures, whose pictures come as near to training pictures as those of the
band prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from sharpaudit.matches.decide import copy_lines, false_match_bound, false_match_rate, granted
from sharpaudit.report.reading import Entry, rows_of
from sharpaudit.tables.query import Connection

GROUPS = {"flagged": "flagged", "uncalibrated": "uncalibrated", "controls": "control"}
"""Of audited prompts, by what triage selected them for."""
EXCEPTIONS = (0, 1, 2)
"""Band prompts above the line for which the findings are counted, beside those in force."""


def copies(connection: Connection, per_prompt: int) -> Entry:
    """Of each group: compared, copied, expected by chance, at most expected (95%); the last two null without bands.

    per_prompt: pictures of each prompt. compared, copied: numbers of prompts. Only prompts that triage selects now.
    """
    told = rows_of(
        connection,
        """
        SELECT t.selected_for AS purpose, count(*) AS compared, count(*) FILTER (g.n_copies > 0) AS copied
        FROM generated g JOIN triage t USING (prompt_id)
        WHERE t.role = 'audit' AND g.best_similarity IS NOT NULL GROUP BY ALL""",
    )
    counts = {row["purpose"]: row for row in told}
    rates = _rates(connection)
    found: Entry = {"per_prompt": per_prompt}
    for name, purpose in GROUPS.items():
        row = counts.get(purpose, {"compared": 0, "copied": 0})
        expected = {
            key: None if rates is None else row["compared"] * rate
            for key, rate in zip(("expected", "expected_high"), rates or (0.0, 0.0), strict=True)
        }
        found[name] = {"compared": row["compared"], "copied": row["copied"]} | expected
    return found


def bands(connection: Connection) -> Entry | None:
    """The line of a copy, what it rests on, who lies above it, and the findings at other lines; None without one."""
    rows = rows_of(connection, "SELECT * EXCLUDE (status, reason) FROM bands")
    if not rows:
        return None
    aside = rows_of(
        connection,
        """
        SELECT c.prompt, g.best_similarity, g.best_reference_id
        FROM generated g JOIN triage t ON t.prompt_id = g.prompt_id JOIN corpus c ON c.prompt_id = g.prompt_id
        WHERE t.selected_for = 'band' AND g.n_copies > 0 ORDER BY g.best_similarity DESC, c.prompt""",
    )
    counts = dict(
        connection.sql(
            "SELECT band, count(*) FROM matches JOIN triage USING (prompt_id) "
            "WHERE rank = 1 AND role = 'audit' AND band IS NOT NULL GROUP BY band"
        ).fetchall()
    )
    rate, high = _rates(connection) or (1.0, 1.0)
    return rows[0] | {
        "false_match_rate": rate,
        "false_match_high": high,
        "set_aside": aside,
        "samples": {band: counts.get(band, 0) for band in ("copy", "near", "none")},
        "lines": _lines(connection, rows[0]),
    }


def _rates(connection: Connection) -> tuple[float, float] | None:
    """Mean and bound of the share of harmless prompts that would exceed the line in force; None without one."""
    rows = rows_of(
        connection,
        """
        SELECT any_value(b.n_exceptions) AS exceptions, (
            SELECT count(*) FROM triage t WHERE t.selected_for = 'band' AND t.n_samples <= (
                SELECT count(*) FROM matches m WHERE m.prompt_id = t.prompt_id AND m.rank = 1 AND m.status = 'ok')
        ) AS whole FROM bands b HAVING count(*) > 0""",
    )
    if not rows:
        return None
    exceptions, whole = rows[0]["exceptions"] or 0, rows[0]["whole"]
    return false_match_rate(whole, exceptions), false_match_bound(whole, exceptions)


def _lines(connection: Connection, band: Mapping[str, Any]) -> list[Entry]:
    """The line and the findings of each group at 0, 1 and 2 exceptions, where so many are granted, and as in force."""
    found = connection.sql(
        """
        SELECT t.selected_for AS purpose, g.best_similarity AS best FROM generated g JOIN triage t USING (prompt_id)
        WHERE g.best_similarity IS NOT NULL AND (t.role = 'audit' OR t.selected_for = 'band')"""
    ).fetchnumpy()
    purpose, best = np.asarray(found["purpose"]).astype(str), np.asarray(found["best"], dtype=np.float64)
    by_prompt, in_force = copy_lines(best[purpose == "band"].tolist()), band["n_exceptions"] or 0

    def line(exceptions: int) -> float:
        # Not from the matches: those were searched in other batches, and a last digit may differ.
        return float(band["copy_above"]) if exceptions == in_force else by_prompt[exceptions]

    def above(group: str, at: float) -> int:
        chosen: npt.NDArray[np.bool_] = (purpose == group) & (best > at)
        return int(chosen.sum())

    allowed = min(granted(len(by_prompt)), len(by_prompt) - 1)
    asked = sorted({in_force, *(n for n in EXCEPTIONS if n <= allowed)})
    return [
        {"exceptions": n, "copy_above": line(n), "in_force": n == in_force}
        | {name: above(group, line(n)) for name, group in GROUPS.items()}
        for n in asked
    ]
