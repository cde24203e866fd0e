"""What speaks for the prompts that were generated, beside the score: the grades of the view `grades`, counted by group,
and the lines that alike and localised pictures must pass, which harmless prompts set.
"""

from __future__ import annotations

from sharpaudit.matches.decide import false_match_rate
from sharpaudit.report.reading import Entry, rows_of
from sharpaudit.report.sections.copies import GROUPS
from sharpaudit.tables.query import Connection

GRADES = ("localised", "two instruments", "one instrument", "alike across seeds", "score only", "none")
"""The strongest first."""


def grades(connection: Connection) -> Entry:
    """counts: generated prompts of each group and grade. alike_above, agreement_above: the lines, null where nothing
    set them. n_alike, n_located: harmless prompts behind them, of which `exceptions` may lie above. by_chance: the
    share of harmless prompts that would pass one. alike: the prompts of that grade, the most alike first."""
    counted = {
        (row["selected_for"], row["grade"]): row["n"]
        for row in rows_of(connection, "SELECT selected_for, grade, count(*) AS n FROM grades GROUP BY ALL")
    }
    held = rows_of(
        connection,
        """
        SELECT any_value(alike_above) AS alike_above, any_value(agreement_above) AS agreement_above,
               count(*) FILTER (selected_for = 'band' AND has_all_pictures AND alike IS NOT NULL) AS n_alike,
               count(*) FILTER (selected_for = 'band' AND has_all_pictures AND agreement IS NOT NULL) AS n_located,
               (SELECT coalesce(any_value(n_exceptions), 0) FROM bands) AS exceptions
        FROM corroborated""",
    )[0]
    chances = {
        f"{name}_by_chance": false_match_rate(held[f"n_{name}"], held["exceptions"]) for name in ("alike", "located")
    }
    alike = rows_of(
        connection,
        """
        SELECT c.prompt, k.alike, g.selected_for, r.best_similarity
        FROM grades g JOIN corroborated k USING (prompt_id) JOIN corpus c USING (prompt_id)
             JOIN risk r USING (prompt_id)
        WHERE g.grade = 'alike across seeds' ORDER BY k.alike DESC, c.prompt""",
    )
    counts = {name: {grade: counted.get((purpose, grade), 0) for grade in GRADES} for name, purpose in GROUPS.items()}
    return held | chances | {"counts": counts, "alike": alike}
