"""What speaks for the prompts that were generated, beside the score: the grades of the view `grades`, counted by group,
and the lines that alike and localised pictures must pass, which harmless prompts set.
"""

from __future__ import annotations

from sharpaudit.matches.decide import false_match_rate
from sharpaudit.report.reading import Entry, rows_of
from sharpaudit.report.sections.copies import GROUPS
from sharpaudit.tables.query import Connection

GRADES = ("localised", "two instruments", "one instrument", "alike across seeds", "score only")
"""The strongest first."""


def grades(connection: Connection) -> Entry:
    """counts: prompts of each group and grade. alike_above, agreement_above: the lines, null where nothing set them.
    n: harmless prompts behind them. chance: the share of harmless prompts that would pass one."""
    counted = {
        (row["selected_for"], row["grade"]): row["n"]
        for row in rows_of(connection, "SELECT selected_for, grade, count(*) AS n FROM grades GROUP BY ALL")
    }
    held = rows_of(
        connection,
        """
        SELECT any_value(alike_above) AS alike_above, any_value(agreement_above) AS agreement_above,
               count(*) FILTER (selected_for = 'band' AND alike IS NOT NULL) AS n_alike,
               count(*) FILTER (selected_for = 'band' AND agreement IS NOT NULL) AS n_located,
               (SELECT any_value(n_exceptions) FROM bands) AS exceptions
        FROM corroborated""",
    )[0]
    exceptions = held.pop("exceptions") or 0
    chances = {f"{name}_by_chance": false_match_rate(held[f"n_{name}"], exceptions) for name in ("alike", "located")}
    counts = {name: {grade: counted.get((purpose, grade), 0) for grade in GRADES} for name, purpose in GROUPS.items()}
    return held | chances | {"counts": counts}
