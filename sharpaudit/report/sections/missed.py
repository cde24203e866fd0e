"""What the flags may have missed: the control sample by strata, what it bounds, and positive controls.

A control that was drawn and has a picture that was not made or not matched counts as copied in the bound: a failure may
depend on the prompt, so it must not make the bound smaller.
"""

from __future__ import annotations

from sharpaudit.report.reading import Entry, rate, rows_of
from sharpaudit.statistics.missed import RATES, Drawn, least_recall, missed, seen
from sharpaudit.tables.query import Connection

_TOLD = """
    WITH examined AS (
        SELECT prompt_id, count(DISTINCT sample_id) AS n FROM matches WHERE status = 'ok' GROUP BY ALL
    ), told AS (
        SELECT t.stratum, t.selected_for, t.p_value, f.prompt_id IS NOT NULL AS copied,
               f.prompt_id IS NULL AND coalesce(e.n, 0) < t.n_samples AS incomplete
        FROM triage t LEFT JOIN findings f USING (prompt_id) LEFT JOIN examined e USING (prompt_id)
        WHERE t.role = 'audit'
    )"""
"""Audited prompts, and whether pictures are missing that might have been copies."""


def controls(connection: Connection, per_prompt: int) -> Entry:
    """The control sample by stratum, and what it bounds: prompts that would copy in at least one of their pictures.

    per_prompt: how many these are. seen: the chance that a prompt which copies at a rate is one of those.
    """
    rows = rows_of(
        connection,
        f"""{_TOLD} SELECT stratum, count(*) AS size, count(*) FILTER (selected_for = 'control') AS drawn,
                count(*) FILTER (selected_for = 'control' AND copied) AS copied,
                count(*) FILTER (selected_for = 'control' AND incomplete) AS not_examined
            FROM told WHERE stratum IS NOT NULL GROUP BY stratum ORDER BY min(p_value)""",  # noqa: S608 - a constant
    )
    told = missed([Drawn(row["size"], row["drawn"], row["copied"], row["not_examined"]) for row in rows])
    for row, high in zip(rows, told.high, strict=True):
        row["missed_high"] = high
    flagged = rows_of(
        connection,
        f"""{_TOLD} SELECT count(*) FILTER (copied) AS copied, count(*) FILTER (incomplete) AS not_examined
            FROM told WHERE selected_for IN ('flagged', 'uncalibrated')""",  # noqa: S608 - a constant
    )[0]
    found, unflagged = flagged["copied"], sum(row["size"] for row in rows)
    # A flagged prompt without all its pictures may copy as well, and was not found to.
    others_high = flagged["not_examined"] + told.total_high
    return {
        "seen": [{"rate": at, "share": seen(at, per_prompt)} for at in RATES],
        "strata": rows,
        "missed_high": told.total_high,
        "missed_estimate": told.estimate,
        "miss_rate": {
            "estimate": told.estimate / unflagged if unflagged and told.estimate is not None else None,
            "high": told.total_high / unflagged if unflagged else None,
        },
        "found": found,
        "recall_low": least_recall(found, others_high),
        "memorised": {
            "low": found + sum(row["copied"] for row in rows),
            "estimate": None if told.estimate is None else found + told.estimate,
            "high": found + others_high,
        },
    }


def positive_controls(connection: Connection) -> Entry:
    counts = rows_of(
        connection,
        """
        SELECT count(*) AS n, count(*) FILTER (flagged) AS flagged, count(*) FILTER (prompt_id IN (
            SELECT s.prompt_id FROM samples s JOIN judged m USING (sample_id) WHERE m.band = 'copy'
        )) AS copied FROM triage WHERE role = 'positive_control'""",
    )[0]
    return {
        "n": counts["n"],
        "flagged": rate(counts["flagged"], counts["n"]),
        "copied": rate(counts["copied"], counts["n"]),
    }
