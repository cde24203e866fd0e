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
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sharpaudit.matches.decide import UNLIKE, copy_lines, false_match_bound, false_match_rate, granted
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
            "SELECT band, count(*) FROM judged JOIN triage USING (prompt_id) "
            "WHERE role = 'audit' AND band IS NOT NULL GROUP BY band"
        ).fetchall()
    )
    rate, high = _rates(connection) or (1.0, 1.0)
    seen = _Seen.of(connection, verifying=rows[0]["verified_by"] is not None)
    return rows[0] | {
        "false_match_rate": rate,
        "false_match_high": high,
        "set_aside": aside,
        "samples": {band: counts.get(band, 0) for band in ("copy", "near", "none")},
        "lines": _lines(seen, rows[0]),
        "alone": _alone(seen, rows[0]),
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


@dataclass(frozen=True)
class _Seen:
    """Pairs of samples and training pictures: what triage selected the prompt for, the prompt, what the instruments saw
    of the pair (P, I)."""

    purpose_P: npt.NDArray[np.str_]
    prompt_P: npt.NDArray[np.str_]
    seen_PI: npt.NDArray[np.float64]

    @staticmethod
    def of(connection: Connection, *, verifying: bool) -> _Seen:
        """With one instrument of each sample the nearest, else all neighbours."""
        found = connection.sql(
            f"""
            SELECT t.selected_for AS purpose, m.prompt_id AS prompt, m.similarity AS first,
                   coalesce({"m.verified_similarity" if verifying else "NULL"}, {UNLIKE}) AS second
            FROM matches m JOIN triage t USING (prompt_id)
            WHERE m.similarity IS NOT NULL AND (t.role = 'audit' OR t.selected_for = 'band')
                  AND ({verifying} OR m.rank = 1)"""  # noqa: S608 - constants
        ).fetchnumpy()
        columns = [np.asarray(found[name], dtype=np.float64) for name in ("first", "second")[: 1 + verifying]]
        purpose, prompt = (np.asarray(found[name]).astype(str) for name in ("purpose", "prompt"))
        return _Seen(purpose, prompt, np.stack(columns, axis=1))

    def alone(self, instrument: int) -> _Seen:
        """As one of the instruments sees the same pairs."""
        return _Seen(self.purpose_P, self.prompt_P, self.seen_PI[:, [instrument]])

    def copy_lines(self) -> npt.NDArray[np.float64]:
        """The lines at 0, 1, ... exceptions among the band prompts, (N, I)."""
        band: npt.NDArray[np.bool_] = self.purpose_P == "band"
        return copy_lines(self.seen_PI[band], self.prompt_P[band].tolist())

    def above(self, lines_I: npt.NDArray[np.float64]) -> dict[str, int]:
        """Prompts of each group with a pair above the lines of all instruments."""
        copy_P: npt.NDArray[np.bool_] = np.asarray(np.all(self.seen_PI > lines_I, axis=1))
        return {
            name: len(set(self.prompt_P[copy_P & (self.purpose_P == purpose)].tolist()))
            for name, purpose in GROUPS.items()
        }


def _lines(seen: _Seen, band: Mapping[str, Any]) -> list[Entry]:
    """The lines and the findings of each group at 0, 1 and 2 exceptions, where so many are granted, and as in force."""
    lines_NI, in_force = seen.copy_lines(), band["n_exceptions"] or 0
    # Not from the matches: those were searched in other batches, and a last digit may differ.
    stored = [band["copy_above"], *([] if band["verified_by"] is None else [band["verified_above"]])]
    allowed = min(granted(len(lines_NI)), len(lines_NI) - 1)
    asked = sorted({in_force, *(n for n in EXCEPTIONS if n <= allowed)})
    found = []
    for n in asked:
        lines_I = np.array(stored, dtype=np.float64) if n == in_force else lines_NI[n]
        told = {"exceptions": n, "copy_above": float(lines_I[0]), "in_force": n == in_force}
        also = {} if len(lines_I) == 1 else {"verified_above": float(lines_I[1])}
        found.append(told | also | seen.above(lines_I))
    return found


def _alone(seen: _Seen, band: Mapping[str, Any]) -> list[Entry]:
    """What each of two instruments would find by itself, with as many exceptions, of the pairs that the first finds."""
    if band["verified_by"] is None or "band" not in seen.purpose_P:
        return []
    lines_I, names = seen.copy_lines()[band["n_exceptions"] or 0], (band["profile"], band["verified_by"])
    return [
        {"profile": name, "copy_above": float(lines_I[i])} | seen.alone(i).above(lines_I[[i]])
        for i, name in enumerate(names)
    ]
